"""Answer a question about a folder of documents, with what was copied from where."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from langchain_core.language_models import BaseLanguageModel
from rich.console import Console
from rich.text import Text

from langchain_llma import LLMA, ChatLLMA
from llma_rag.decoder import Decoder
from llma_rag.demo.chain import build_chain
from llma_rag.demo.passages import Passage
from llma_rag.demo.recording import RecordingDecoder
from llma_rag.demo.sources import Sources, sources_of
from llma_rag.demo.terminal import AnswerView, Palette, cost_line, legend


def answer_question(
    question: str,
    passages: Sequence[Passage],
    *,
    model: str | Path,
    k: int,
    max_new_tokens: int,
    console: Console,
) -> None:
    """Retrieve, answer and print.

    Args:
        question: What is asked.
        passages: What may answer it, at least one.
        model: Folder or hub name.
        k: How many passages are retrieved.
        max_new_tokens: Most tokens of the answer.
        console: Where to print.

    Raises:
        OSError: If the model cannot be had.
        ContextOverflowError: If the passages leave no room for an answer.
    """
    decoder = RecordingDecoder(Decoder.shared(model))
    chain = build_chain(_llm(decoder, max_new_tokens), passages, k=k)
    sources, palette = Sources(passages), Palette()
    view = AnswerView(console, palette)
    answer = ""
    spans = []
    try:
        for piece in chain.stream(question):
            answer += piece
            spans = sources.spans(answer.strip(), decoder.called)
            view.show(answer.strip(), spans)
    finally:
        view.finish()
    console.print(legend(sources_of(spans), palette))
    stats = decoder.called.result.stats
    line = f"{cost_line(stats.generated_tokens, stats.forward_passes)}; {stats.total_time:.2f} s"
    console.print(Text(line, style="dim"))


def _llm(decoder: RecordingDecoder, max_new_tokens: int) -> BaseLanguageModel[Any]:
    """Return a chat model where the model has a chat template, else a text model."""
    known = cast("Decoder", decoder)
    if decoder.decoder.tokenizer.chat_template:
        return ChatLLMA.from_decoder(known, max_tokens=max_new_tokens)
    return LLMA.from_decoder(known, max_tokens=max_new_tokens)
