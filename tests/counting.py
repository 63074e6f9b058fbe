"""A model whose forward passes are counted, held and failed, and a way to wait for it."""

import threading
import time

import pytest

from llma_rag import Decoder
from tests.models import character_tokenizer, tiny_model


class CountingModel:
    """Counts the forward passes of a model and can make one of them fail or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = tiny_model("llama-gqa")
        self.forwards = 0
        self.fail_at: int | None = None
        self.gate: threading.Semaphore | None = None
        original = self.model.forward

        def forward(*args, **kwargs):
            self.forwards += 1
            if self.gate is not None:
                assert self.gate.acquire(timeout=20)
            if self.forwards == self.fail_at:
                raise ZeroDivisionError("a failing layer")
            return original(*args, **kwargs)

        forward.__signature__ = __import__("inspect").signature(original)
        monkeypatch.setattr(self.model, "forward", forward)
        self.decoder = Decoder(self.model, character_tokenizer())


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)
