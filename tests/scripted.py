"""A scripted model and what plain decoding of its script must give, worked out without a model."""

from collections.abc import Sequence
from functools import cache

from llma_rag import Decoder
from llma_rag.testing import ScriptedModel, byte_tokenizer

PROMPT = "Question? Answer:"


def ids(text: str) -> list[int]:
    """Return the byte tokens of a text; special tokens written out become themselves."""
    return list(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


@cache
def scripted() -> tuple[ScriptedModel, Decoder]:
    """Return one model and its decoder; `tell` gives it the next script."""
    model = ScriptedModel([], eos_token_id=1)
    return model, Decoder(model, byte_tokenizer())


def tell(script: str | Sequence[int]) -> Decoder:
    """Return the decoder of a model that answers `script` to any prompt."""
    model, decoder = scripted()
    model.script = ids(script) if isinstance(script, str) else list(script)
    model.logits_at = {}
    return decoder


def until_stop(script: Sequence[int], stops: Sequence[str]) -> tuple[list[int], str, bool]:
    """Return tokens, text and whether it stopped: read byte by byte until a stop string is there.

    Independent of the code under test: the text so far is what the bytes so far spell.
    """
    for count in range(1, len(script) + 1):
        text = spelled(script[:count])
        found = [text.find(stop) for stop in stops if stop in text]
        if found:
            return list(script[:count]), text[: min(found)], True
    return list(script), spelled(script), False


def spelled(tokens: Sequence[int]) -> str:
    """Return the text of byte tokens, without an unfinished character at its end."""
    text = byte_tokenizer().decode(list(tokens), skip_special_tokens=True)
    return text.rstrip("\ufffd")
