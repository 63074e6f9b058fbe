"""Ask the demo's questions through both frameworks and compare every answer with plain decoding."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from llama_index.core.base.response.schema import StreamingResponse

from langchain_llma import ChatLLMA
from llama_index.llms.llma import LLMA
from llma_rag.decoder import Decoder
from llma_rag.demo import DOCUMENTS, MODEL
from llma_rag.demo.chain import build_chain
from llma_rag.demo.engine import build_query_engine
from llma_rag.demo.passages import Passage, read_folder
from llma_rag.demo.questions import QUESTIONS, Question
from llma_rag.demo.recording import RecordingDecoder
from llma_rag.demo.sources import SourcedSpan, Sources, sources_of

MAX_NEW_TOKENS = 128
RETRIEVED = 3

Ask = Callable[[str], Iterator[str]]
"""From a question to the pieces of its answer."""
Watch = Callable[[str, list[SourcedSpan]], None]
"""Told the answer so far and what of it was copied, after every piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer of the demo.

    Attributes:
        framework: `"langchain"` or `"llama-index"`.
        question: What was asked.
        answer: What the framework returned.
        sources: Documents from which the answer was copied, in order of appearance.
        tokens: Generated tokens.
        forwards: Forward passes, the prefill included.
        tokens_per_forward: The one over the other.
        seconds: Time of the answer with drafts.
        seconds_plain: Time of the same decoder without references and drafts.
        seconds_generate: Time of transformers' `generate`.
        identical: Whether the token ids equal those of the decoder without drafts.
    """

    framework: str
    question: str
    answer: str
    sources: tuple[str, ...]
    tokens: int
    forwards: int
    tokens_per_forward: float
    seconds: float
    seconds_plain: float
    seconds_generate: float
    identical: bool


class Demo:
    """The indexed documents, the model, and one pipeline per framework.

    Attributes:
        passages: What was indexed.
        sources: Tells which document a reference comes from.
    """

    def __init__(self, model: Path = MODEL) -> None:
        """Load the model in 32-bit precision, index the documents and warm up.

        Raises:
            OSError: If model or documents cannot be read.
        """
        self.passages: Sequence[Passage] = read_folder(DOCUMENTS)
        self.sources = Sources(self.passages)
        self._decoder = RecordingDecoder(Decoder.shared(model, dtype="float32"))
        self._pipelines: dict[str, Ask] = {
            "langchain": self._langchain(),
            "llama-index": self._llama_index(),
        }
        self._warm_up()

    def rows(
        self,
        questions: Sequence[Question] = QUESTIONS,
        *,
        before: Callable[[str, str], None] = lambda framework, question: None,
        watch: Watch = lambda answer, spans: None,
    ) -> Iterator[Row]:
        """Yield one row per framework and question.

        Args:
            questions: What is asked.
            before: Told framework and question before the answer begins.
            watch: Told the answer as it grows.
        """
        for framework, ask in self._pipelines.items():
            for question in questions:
                before(framework, question.text)
                answer = ""
                for piece in ask(question.text):
                    answer += piece
                    watch(answer.strip(), self._spans(answer.strip()))
                yield self._row(framework, question.text, answer.strip())

    def _spans(self, answer: str) -> list[SourcedSpan]:
        return self.sources.spans(answer, self._decoder.called)

    def _langchain(self) -> Ask:
        llm = ChatLLMA.from_decoder(cast("Decoder", self._decoder), max_tokens=MAX_NEW_TOKENS)
        return build_chain(llm, self.passages, k=RETRIEVED).stream

    def _llama_index(self) -> Ask:
        llm = LLMA(decoder=cast("Decoder", self._decoder), max_new_tokens=MAX_NEW_TOKENS)
        engine = build_query_engine(llm, self.passages, k=RETRIEVED)

        def ask(question: str) -> Iterator[str]:
            response = engine.query(question)
            assert isinstance(response, StreamingResponse), "the engine was built to stream"
            yield from response.response_gen

        return ask

    def _warm_up(self) -> None:
        """Pay once for what every first call pays, so that no arm is timed with it."""
        prompt = self._decoder.decoder.tokenizer(self.passages[0].text)["input_ids"]
        self._decoder.decoder.generate(prompt, references=[self.passages[0].text], max_new_tokens=8)
        self._generate(prompt, 8)

    def _row(self, framework: str, question: str, answer: str) -> Row:
        call = self._decoder.called
        result, asked = call.result, call.request
        plain = self._decoder.decoder.generate(asked.prompt, draft=False, **asked.options)
        prompt = self._decoder.prompt_ids(asked.prompt)
        return Row(
            framework=framework,
            question=question,
            answer=answer,
            sources=sources_of(self._spans(answer)),
            tokens=result.stats.generated_tokens,
            forwards=result.stats.forward_passes,
            tokens_per_forward=round(result.stats.tokens_per_forward, 3),
            seconds=round(result.stats.total_time, 4),
            seconds_plain=round(plain.stats.total_time, 4),
            seconds_generate=round(self._generate(prompt, MAX_NEW_TOKENS), 4),
            identical=result.token_ids == plain.token_ids,
        )

    def _generate(self, prompt: Sequence[int], max_new_tokens: int) -> float:
        """Return the seconds that transformers' own greedy loop takes."""
        model: Any = self._decoder.decoder.model
        ids = torch.tensor([list(prompt)], device=model.device)
        start = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
        return time.perf_counter() - start
