"""What is shipped: wheels, public names, and documents that work as printed."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from llma_rag.demo import MODEL

ROOT = Path(__file__).parents[1]
PROJECTS = {
    "llma_rag": ROOT,
    "langchain_llma": ROOT / "integrations" / "langchain",
    "llama_index.llms.llma": ROOT / "integrations" / "llama_index",
}
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, zipfile.ZipFile]:
    built = {}
    for package, project in PROJECTS.items():
        folder = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        built[package] = zipfile.ZipFile(wheel)
    yield built
    for wheel in built.values():
        wheel.close()


@pytest.mark.parametrize("package", PROJECTS)
def test_wheels_are_typed_and_hold_the_package_only(wheels, package):
    names = wheels[package].namelist()
    folder = package.replace(".", "/") + "/"
    assert f"{folder}py.typed" in names
    assert f"{folder}__init__.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert [n for n in names if not n.startswith(folder) and ".dist-info/" not in n] == []
    assert [n for n in names if n.endswith((".pkl", ".pickle", ".bin", ".pt", ".pyc"))] == []


def test_the_core_wheel_holds_the_model_and_the_documents(wheels):
    names = wheels["llma_rag"].namelist()
    model = {name.removeprefix("llma_rag/demo/model/") for name in names if "/demo/model/" in name}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= model
    assert sum(name.startswith("llma_rag/demo/documents/") for name in names) >= 20
    assert wheels["llma_rag"].getinfo("llma_rag/demo/model/model.safetensors").file_size <= 16 << 20


def test_the_command_is_installed(wheels):
    (entry,) = [n for n in wheels["llma_rag"].namelist() if n.endswith("entry_points.txt")]
    assert b"llma-rag = llma_rag.cli:main" in wheels["llma_rag"].read(entry)


def test_all_distributions_have_the_version_of_the_package():
    import llma_rag

    for project in PROJECTS.values():
        described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        assert described["version"] == llma_rag.__version__


@pytest.mark.parametrize("package", PROJECTS)
def test_all_is_sorted_and_is_what_is_public(package):
    module = import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(package)
    }
    assert own <= set(module.__all__)


def test_importing_the_core_loads_no_torch():
    code = "import sys, llma_rag, llma_rag.demo; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class TestReadme:
    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)

    def swapped(self, package: str) -> str:
        """What a swap leaves in the user's file, with the bundled model for the one on the hub."""
        (block,) = [block for block in self.blocks("diff") if f"from {package}" in block]
        kept = [line[1:] for line in block.splitlines() if not line.startswith("-")]
        return "\n".join(kept).replace("Qwen/Qwen3-8B", str(MODEL))

    def test_is_short(self):
        assert len(README.splitlines()) <= 150

    def test_python_blocks_run(self, capsys):
        blocks = self.blocks("python")
        assert blocks
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()

    def test_the_langchain_swap_works(self):
        from langchain_classic.chains.question_answering.stuff_prompt import CHAT_PROMPT
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.runnables import RunnablePassthrough

        from llma_rag.demo import DOCUMENTS
        from llma_rag.demo.chain import FaissStore, format_docs
        from llma_rag.demo.passages import read_folder

        names = {
            "retriever": FaissStore.from_passages(read_folder(DOCUMENTS)).as_retriever(),
            "format_docs": format_docs,
            "prompt": CHAT_PROMPT,
            "RunnablePassthrough": RunnablePassthrough,
            "StrOutputParser": StrOutputParser,
        }
        exec(self.swapped("langchain_llma"), names)
        assert names["chain"].invoke("Who founded Skerry Line?").strip()

    def test_the_llama_index_swap_works(self):
        from llama_index.core import VectorStoreIndex
        from llama_index.core.schema import TextNode

        from llma_rag.demo.embedding import HashingEmbedding
        from llma_rag.demo.engine import HashingEmbeddings

        nodes = [TextNode(text="Captain Ingrid Halvard founded Skerry Line in 1961.")]
        index = VectorStoreIndex(nodes, embed_model=HashingEmbeddings(HashingEmbedding()))
        names = {"index": index}
        exec(self.swapped("llama_index"), names)
        assert str(names["query_engine"].query("Who founded Skerry Line?")).strip()

    def test_tables_are_those_of_the_committed_results(self):
        done = subprocess.run(
            [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
