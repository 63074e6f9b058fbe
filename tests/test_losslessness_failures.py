"""Rows T28 to T31, T34, T38 to T40: whatever goes wrong, the next call is right."""

import asyncio
import copy
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import LogitsProcessor

from llma_rag import Decoder, NonFiniteLogitsError
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.testing import ScriptedModel, byte_tokenizer
from tests.scripted import PROMPT, ids, scripted, tell

ANSWER = "a copied answer that is long enough"
STEPS = 6


class Failing(LogitsProcessor):
    """Raises or calls something at the n-th position."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self.at, self.act, self.calls = at, act, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return scores


def fails(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def right(decoder: Decoder) -> None:
    """Assert that a next call gives the right answer, with drafts."""
    result = decoder.generate(PROMPT, references=[ANSWER], max_new_tokens=len(ANSWER))
    assert result.text == ANSWER
    assert result.stats.forward_passes < 12


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise, which a shell has its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("at", range(1, STEPS))
def test_T28_a_keyboard_interrupt_at_any_position_stops_the_model(
    at: int, interruptible: None
) -> None:
    """The worker waits at the position until the caller is interrupted."""
    decoder = tell(ANSWER)
    gone = threading.Event()
    main = threading.main_thread().ident

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        assert gone.wait(20)

    processor = Failing(at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        decoder.generate(PROMPT, logits_processor=[processor], draft=False, max_new_tokens=30)
    gone.set()
    right(decoder)
    assert processor.calls <= at + 1


@pytest.mark.parametrize("at", range(1, STEPS))
def test_T28_cancelling_or_closing_at_any_position_stops_the_model(at: int) -> None:
    decoder = tell(ANSWER)
    reached, gone = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        assert gone.wait(20)

    processor = Failing(at, wait)
    options = {"logits_processor": [processor], "draft": False, "max_new_tokens": 30}
    future = decoder.submit(PROMPT, **options)
    assert reached.wait(20)
    assert future.cancel()
    gone.set()
    right(decoder)
    assert processor.calls <= at + 1


@pytest.mark.parametrize("at", range(1, STEPS))
async def test_T28_a_cancelled_task_stops_the_model(at: int) -> None:
    decoder = tell(ANSWER)
    reached, gone = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        assert gone.wait(20)

    processor = Failing(at, wait)
    task = asyncio.create_task(
        decoder.agenerate(PROMPT, logits_processor=[processor], draft=False, max_new_tokens=30)
    )
    while not reached.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gone.set()
    right(decoder)
    assert processor.calls <= at + 1


@pytest.mark.parametrize("at", range(1, STEPS))
@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3), KeyboardInterrupt()])
def test_T29_errors_of_processors_reach_the_caller_as_they_are(
    at: int, error: BaseException
) -> None:
    decoder = tell(ANSWER)
    options = {"references": [ANSWER], "max_new_tokens": 30}
    with pytest.raises(type(error)):
        decoder.generate(PROMPT, logits_processor=[Failing(at, fails(error))], **options)
    with pytest.raises(type(error)):
        list(decoder.stream(PROMPT, logits_processor=[Failing(at, fails(error))], **options))
    right(decoder)


@pytest.mark.parametrize("at", [1, 2, 9, 32])
def test_T29_what_was_accepted_before_an_error_is_delivered(at: int) -> None:
    """The error is raised within a pass that accepts many tokens."""
    told = {}
    for references in ([], [ANSWER]):
        stream = tell(ANSWER).stream(
            PROMPT, references=references, max_new_tokens=40,
            logits_processor=[Failing(at, fails(ZeroDivisionError("x")))],
        )  # fmt: skip
        chunks = []
        with pytest.raises(ZeroDivisionError):
            chunks += stream  # extends before it raises
        told[bool(references)] = "".join(chunk.text for chunk in chunks)
        spans = [span for chunk in chunks for span in chunk.copied_spans]
    assert told[True] == told[False] == ANSWER[: at - 1]
    assert at < 9 or spans[-1].end == at - 1


@pytest.mark.parametrize("at", range(1, STEPS))
@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3)])
def test_T29_errors_of_the_model_reach_the_caller_as_they_are(
    at: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tell(ANSWER)
    model, _ = scripted()
    original, calls = model._tell, []

    def tells(logits: torch.Tensor, number: int) -> None:
        calls.append(number)
        if number == at:
            raise error
        original(logits, number)

    monkeypatch.setattr(model, "_tell", tells)
    for draft in (True, False):
        with pytest.raises(type(error)):
            decoder.generate(PROMPT, references=[ANSWER], draft=draft, max_new_tokens=30)
    monkeypatch.undo()
    right(decoder)


@pytest.mark.parametrize("most", range(8))
def test_T30_where_memory_runs_out_the_draft_is_halved(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tell(ANSWER)
    original, refused = StepRunner.run, []

    def runs(self: StepRunner, step: Pass) -> Outcome:
        if len(step.drafted) > most:
            refused.append(len(step.drafted))
            raise torch.OutOfMemoryError("simulated")
        return original(self, step)

    monkeypatch.setattr(decoder._worker, "_run", lambda step: runs(decoder._loop._runner, step))
    decoder.close()  # the next request starts a worker with the new function
    result = decoder.generate(PROMPT, references=[ANSWER], max_new_tokens=len(ANSWER))
    monkeypatch.undo()
    decoder.close()
    assert result.text == ANSWER
    assert refused
    right(decoder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 1}, {"top_k": 3}])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_T31_logits_that_are_no_numbers_are_named(value: float, options: dict, at: int) -> None:
    decoder = tell(ANSWER)
    model, _ = scripted()
    model.logits_at = {at: torch.full((260,), value)}
    for references in ([], [ANSWER]):
        with pytest.raises(NonFiniteLogitsError) as caught:
            decoder.generate(PROMPT, references=references, max_new_tokens=20, **options)
        assert caught.value.position == len(ids(PROMPT)) + at
    short = decoder.generate(PROMPT, references=[ANSWER], max_new_tokens=at, **options)
    assert list(short.token_ids) == ids(ANSWER)[:at]
    model.logits_at = {}
    right(decoder)


def test_T31_they_are_replaced_where_the_model_asks_for_it() -> None:
    model = ScriptedModel(ids(ANSWER))
    model.generation_config.remove_invalid_values = True
    decoder = Decoder(model, byte_tokenizer())
    broken = torch.zeros(260)
    broken[70], broken[90] = float("nan"), float("inf")
    model.logits_at = {2: broken}
    result = decoder.generate(PROMPT, references=[ANSWER], max_new_tokens=5)
    assert list(result.token_ids) == [*ids("a "), 90, *ids("op")]


def test_T34_training_mode_is_refused_and_the_callers_modes_do_not_matter() -> None:
    model = ScriptedModel(ids(ANSWER))
    decoder = Decoder(model, byte_tokenizer())
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        right(decoder)
    model.train()
    with pytest.raises(ValueError, match=r"training mode.*`model.eval\(\)`"):
        decoder.generate(PROMPT, max_new_tokens=3)
    with pytest.raises(ValueError, match="training mode"):
        Decoder(model, byte_tokenizer())
    model.eval()
    right(decoder)


def snapshot(model: ScriptedModel) -> dict[str, object]:
    """Everything of the caller's that a request could change."""
    tokenizer = byte_tokenizer()
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "grads": [one.requires_grad for one in model.parameters()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
            for module in model.modules()
        ],
        "config": model.config.to_dict(),
        "generation": copy.deepcopy(model.generation_config.to_dict()),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "sides": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token),
        "random": torch.random.get_rng_state(),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"stop": "long", "min_new_tokens": 3}, {"repetition_penalty": 1.1, "seed": 1},
     {"do_sample": True, "seed": 4, "top_p": 0.9}, {"json_schema": {"type": "integer"}}],
)  # fmt: skip
def test_the_callers_model_tokenizer_and_settings_are_as_they_were(options: dict) -> None:
    if "json_schema" in options:
        pytest.importorskip("llguidance")
    decoder = tell(ANSWER)
    model, _ = scripted()
    before = snapshot(model)
    given = copy.deepcopy(options)
    decoder.generate(PROMPT, references=[ANSWER], max_new_tokens=20, **options)
    after = snapshot(model)
    assert options == given
    weights, random = before.pop("weights"), before.pop("random")
    assert all(torch.equal(value, weights[name]) for name, value in after.pop("weights").items())
    assert torch.equal(after.pop("random"), random)
    assert after == before


async def test_T38_drafts_are_made_by_every_way_to_ask() -> None:
    decoder = tell(ANSWER)
    asked = {"references": [ANSWER], "max_new_tokens": len(ANSWER)}
    with decoder.stream(PROMPT, **asked) as stream:
        list(stream)
    async with decoder.astream(PROMPT, **asked) as astream:
        [chunk async for chunk in astream]
    results = [
        decoder.generate(PROMPT, **asked),
        decoder.submit(PROMPT, **asked).result(),
        await decoder.agenerate(PROMPT, **asked),
        stream.result,
        astream.result,
    ]
    assert {result.text for result in results} == {ANSWER}
    assert all(result.stats.accepted_tokens > 20 for result in results)


def test_T39_a_decoder_is_not_pickled_and_not_copied() -> None:
    decoder = tell(ANSWER)
    with pytest.raises(TypeError, match=r"cannot be pickled.*Decoder\.shared"):
        pickle.dumps(decoder)
    assert copy.deepcopy({"decoder": decoder})["decoder"] is decoder
    decoder.generate(PROMPT, references=["a secret"], max_new_tokens=3)
    assert "secret" not in repr(decoder)


def in_child(decoder: Decoder, queue: "multiprocessing.Queue[str]") -> None:
    result = decoder.generate(PROMPT, references=[ANSWER], max_new_tokens=len(ANSWER))
    queue.put(result.text)


def loads_in_child(folder: str, queue: "multiprocessing.Queue[str]") -> None:
    decoder = Decoder.shared(folder)
    queue.put(decoder.generate("ab", max_new_tokens=3, draft=False).text)


def test_T40_a_forked_child_decodes_with_a_worker_of_its_own() -> None:
    decoder = tell(ANSWER)
    right(decoder)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(decoder, queue))
    child.start()
    assert queue.get(timeout=60) == ANSWER
    child.join(20)
    assert child.exitcode == 0
    right(decoder)


@pytest.mark.slow
def test_T40_a_spawned_child_loads_its_own(tmp_path) -> None:
    from tests.models import character_tokenizer, tiny_model

    tiny_model("llama-gqa").save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=loads_in_child, args=(str(tmp_path), queue))
    child.start()
    text = queue.get(timeout=120)
    child.join(20)
    assert text == Decoder.shared(tmp_path).generate("ab", max_new_tokens=3).text
