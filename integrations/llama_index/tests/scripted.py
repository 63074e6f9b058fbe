"""A decoder without a model: it copies part of its second reference, in three chunks."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import SimpleNamespace

from integrations.llama_index.tests.conftest import make_tokenizer
from llma_rag import CopiedSpan, DecodingStats, GenerationChunk, GenerationResult

FIRST, LAST = 5, 60
BEGINNING, END = "Answer: ", " end."


class ScriptedDecoder:
    """Keeps what it was asked with; answers the same to every endpoint."""

    context_length = 4096

    def __init__(self):
        self.tokenizer = make_tokenizer()
        config = SimpleNamespace(model_type="scripted")
        generation_config = SimpleNamespace(eos_token_id=[2, 7], do_sample=False)
        self.model = SimpleNamespace(
            config=config, generation_config=generation_config, name_or_path="scripted"
        )
        self.calls = []

    def generate(self, prompt, *, references=(), **options):
        self.calls.append(SimpleNamespace(prompt=prompt, references=references, options=options))
        text, spans = "Nothing to copy from.", ()
        if references:
            index = min(1, len(references) - 1)
            copied = references[index].text[FIRST:LAST]
            text = BEGINNING + copied + END
            start = len(BEGINNING)
            span = CopiedSpan(
                start, start + len(copied), references[index].id, index, FIRST, FIRST + len(copied)
            )
            short = CopiedSpan(len(text) - 4, len(text) - 1, references[index].id, index, 0, 3)
            spans = (span, short)
        stats = DecodingStats(
            prompt_tokens=len(prompt), generated_tokens=len(text), forward_passes=3
        )
        return GenerationResult(
            text=text,
            token_ids=tuple(text.encode()),
            finish_reason="stop",
            copied_spans=spans,
            stats=stats,
        )

    async def agenerate(self, prompt, **arguments):
        return self.generate(prompt, **arguments)

    def stream(self, prompt, **arguments):
        return ScriptedStream(self.generate(prompt, **arguments))

    def astream(self, prompt, **arguments):
        return ScriptedStream(self.generate(prompt, **arguments))


class ScriptedStream(AbstractContextManager, AbstractAsyncContextManager):
    def __init__(self, result):
        third = len(result.text) // 3
        texts = (result.text[:third], "", result.text[third : 2 * third], result.text[2 * third :])
        self.result = result
        self._chunks = iter([GenerationChunk(text, ()) for text in texts])

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._chunks)

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return next(self._chunks)
        except StopIteration:
            raise StopAsyncIteration from None

    def __exit__(self, *details):
        return None

    async def __aexit__(self, *details):
        return None
