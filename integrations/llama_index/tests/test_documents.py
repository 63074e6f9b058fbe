"""The code of the swap guide and of the package's README runs as printed."""

import re
from pathlib import Path

import pytest

from integrations.llama_index.tests.conftest import make_model, make_tokenizer
from integrations.llama_index.tests.probes import corpus, make_index
from llama_index.llms.llma import LLMA

ROOT = Path(__file__).parents[3]
DOCUMENTS = ("docs/llama_index.md", "integrations/llama_index/README.md")
NAMED = "Qwen/Qwen3-8B"


def blocks(document):
    """The Python of a document; of a swap, what stands after it."""
    text = (ROOT / document).read_text()
    for language, block in re.findall(r"```(python|diff)\n(.*?)```", text, re.DOTALL):
        if language == "diff":
            lines = [line[1:] for line in block.splitlines() if not line.startswith("-")]
            block = "\n".join(lines)
        yield block


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model in the place of the one that the documents name."""
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    yield str(path)
    LLMA(model_name=str(path)).decoder.close()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_code_runs(document, folder, capsys):
    index = make_index(size=3, length=10)
    space = {"index": index, "nodes": corpus(size=2, length=5), "prompt": "alpha topic"}
    found = list(blocks(document))
    assert len(found) == 2
    for block in found:
        exec(compile(block.replace(NAMED, folder), document, "exec"), space)
    assert isinstance(space["llm"], LLMA)
    assert str(space["response"])
    assert len(space["results_of"](space["response"])) == 1
    assert capsys.readouterr().out
