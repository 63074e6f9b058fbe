"""The swap guide and the README of the distribution, executed as a reader would."""

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseLanguageModel

from integrations.langchain.tests.matrix import CHAT_PROMPT, TEXT_PROMPT, new_store
from integrations.langchain.tests.probes import joined

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "langchain.md").read_text(encoding="utf-8")
README = (ROOT / "integrations" / "langchain" / "README.md").read_text(encoding="utf-8")
PAGES = {"guide": GUIDE, "readme": README}
TRAINED = Path(__file__).parent / "tiny_trained"
NAMES = re.compile(r'"(?:Qwen/Qwen3-8B|gpt2)"')


def _blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [NAMES.sub(repr(str(TRAINED)), block) for block in found]


def _side(block: str, dropped: str) -> str:
    """One side of a diff."""
    return "\n".join(line[1:] for line in block.splitlines() if not line.startswith(dropped))


def _run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "guide", "exec"), names)


def _names(block: str) -> dict[str, Any]:
    """What the reader of a block has already."""
    from langchain_core.runnables import RunnablePassthrough

    chat = "Chat" in block
    return {
        "retriever": new_store().as_retriever(),
        "format_docs": joined,
        "prompt": CHAT_PROMPT if chat else TEXT_PROMPT,
        "RunnablePassthrough": RunnablePassthrough,
    }


DIFFS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(_blocks(page, "diff"))
]


def test_there_are_swaps_to_try() -> None:
    assert len(DIFFS) >= 6


@pytest.mark.parametrize("block", DIFFS)
def test_a_swap_works_from_both_sides(block: str) -> None:
    """The new lines answer; the old ones are code that works where its package is installed."""
    names = _names(block)
    _run(_side(block, "-"), names)
    asked = names.get("chain", names["llm"])
    assert isinstance(names["llm"], BaseLanguageModel)
    assert asked.invoke("hello") is not None
    if "langchain_ollama" not in block:
        pytest.importorskip(
            "langchain_huggingface", reason="only those who come from there have it"
        )
        _run(_side(block, "+"), _names(block))


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str) -> None:
    (swap, *_) = _blocks("readme", "diff")
    names = _names(swap)
    _run(_side(swap, "-"), names)
    for block in _blocks(page, "python"):
        _run(block, names)
    assert names["message"].usage_metadata["output_tokens"] > 0
