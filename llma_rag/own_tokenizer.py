"""Use a caller's tokenizer from another thread: by a copy, as calls change a fast tokenizer."""

import copy
from typing import Any

from tokenizers import Tokenizer

from llma_rag.encoding import special_tokens

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class OwnTokenizer:
    """A copy of a fast tokenizer, made anew when the caller's has changed.

    A call with `truncation` or `padding` sets these in the tokenizer, where a call of another
    thread meets them. Vocabulary and attributes are shared with the copy, so that it costs neither
    time nor memory. What is no fast tokenizer, or cannot be copied, is used as it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._seen: object = None
        self._copy: Any = None

    def current(self) -> Any:
        """Return a tokenizer that no other thread calls; the same one while nothing changes."""
        if not isinstance(getattr(self._tokenizer, "backend_tokenizer", None), Tokenizer):
            return self._tokenizer
        try:
            seen = _state(self._tokenizer)
            if seen != self._seen:
                self._copy, self._seen = _copied(self._tokenizer), seen
        except Exception:  # parts that are written in Python cannot be compared
            return self._tokenizer
        return self._copy


def _state(tokenizer: Any) -> tuple[object, ...]:
    """Return what tells that a tokenizer has changed, whatever it was called with."""
    backend = tokenizer.backend_tokenizer
    parts = [getattr(backend, name) for name in _PARTS]
    return (
        dict(vars(tokenizer)),
        backend.get_vocab_size(),
        special_tokens(tokenizer),
        [part and part.__getstate__() for part in parts],
    )


def _copied(tokenizer: Any) -> Any:
    """Return a tokenizer that shares all but its backend with another one."""
    backend = tokenizer.backend_tokenizer
    shared = {id(value): value for value in vars(tokenizer).values()}
    return copy.deepcopy(tokenizer, shared | {id(backend): _own(backend)})


def _own(backend: Tokenizer) -> Tokenizer:
    """Return a backend over the same vocabulary, without truncation and padding."""
    own = Tokenizer(backend.model)
    for name in _PARTS:
        if (part := getattr(backend, name)) is not None:
            setattr(own, name, part)
    added = backend.get_added_tokens_decoder()
    own.add_tokens([added[token] for token in sorted(added)])
    same = own.get_added_tokens_decoder() == added
    return own if same else copy.deepcopy(backend)
