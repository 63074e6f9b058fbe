"""The cases of the table in docs/losslessness.md, decoded with drafts and without, ours and theirs.

The peer is transformers' prompt lookup. A case is equal when drafting changes no token.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LogitsProcessor,
    StoppingCriteria,
)

from llma_rag import Decoder, NonFiniteLogitsError
from llma_rag.testing import ScriptedModel, byte_tokenizer
from tests.families import ATTENTION, model_of
from tests.models import character_tokenizer
from tests.stateful import HYBRID, RECURRENT

LOOKUP = {"prompt_lookup_num_tokens": 10}
TOKENIZER = byte_tokenizer()
TEXT = "The ferry leaves at nine. It takes 75 minutes, END of the line. The ferry is red."


def ids(text: str) -> list[int]:
    """Return the byte tokens of a text."""
    return list(TOKENIZER(text)["input_ids"])


@cache
def decoder_of(model: Any) -> Decoder:
    """Return the decoder of a model; warnings of those decoded plainly are tested elsewhere."""
    small = model.config.get_text_config().vocab_size < 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Decoder(model, character_tokenizer() if small else TOKENIZER)


@cache
def random_model(seed: int) -> ScriptedModel:
    """Return a model whose random weights speak."""
    return ScriptedModel([], seed=seed)


class Case:
    """One model and prompt, decoded four ways: ours and the peer's, with and without drafts."""

    def __init__(self, model: Any, prompt: list[int], reference: str, **options: Any) -> None:
        self.model, self.prompt, self.reference = model, prompt, reference
        self.decoder = decoder_of(model)
        self.options = {"max_new_tokens": 40, **options}

    def ours(self, draft: bool) -> Any:
        """Return our tokens."""
        options = {name: _new(value) for name, value in self.options.items()}
        references = [self.reference] if draft else []
        return self.decoder.generate(
            self.prompt, references=references, draft=draft, **options
        ).token_ids

    def peers(self, draft: bool) -> Any:
        """Return the tokens of `generate`."""
        options = {name: _new(value) for name, value in self.options.items()}
        if "stop" in options:
            options |= {"stop_strings": options.pop("stop"), "tokenizer": TOKENIZER}
        seed = options.pop("seed", None)
        if seed is not None:
            torch.manual_seed(seed)
        tensor = torch.tensor([self.prompt])
        output = self.model.generate(
            tensor, attention_mask=torch.ones_like(tensor), pad_token_id=0, **options,
            **(LOOKUP if draft else {}),
        )  # fmt: skip
        return tuple(output[0, len(self.prompt) :].tolist())


def _new(value: Any) -> Any:
    """Make processors and criteria anew for each run, as a caller would."""
    return [one() for one in value] if isinstance(value, list) and callable(value[0]) else value


class AtComma(StoppingCriteria):
    """Stops behind a comma."""

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Look at the last token."""
        return torch.full((1,), bool(input_ids[0, -1] == ids(",")[0]))


class Counter(LogitsProcessor):
    """Counts its calls."""

    calls = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Leave the scores as they are."""
        type(self).calls += 1
        return scores


def copying(**options: Any) -> Case:
    """A model that copies a text that stands in its prompt."""
    prompt = ids(TEXT + " Say it: ")
    model = ScriptedModel(ids(TEXT), eos_token_id=1, starts_at=len(prompt))
    return Case(model, prompt, TEXT, **options)


def free(number: int, **options: Any) -> Case:
    """A model with random weights, which repeats itself."""
    source = random.Random(number)
    prompt = [source.randrange(4, 260) for _ in range(6)] * 3
    return Case(random_model(number % 3), prompt, TOKENIZER.decode(prompt), **options)


def configured(number: int, **settings: Any) -> Case:
    """A model that asks for a cache of another kind."""
    case = free(number)
    case.model = ScriptedModel([], seed=number)
    case.decoder = decoder_of(case.model)
    case.model.generation_config.update(**settings)
    return case


def of_family(family: str) -> Case:
    """A tiny model of an architecture, with random weights."""
    prompt = [10, 20, 30, 10, 20, 31] * 2
    text = str(character_tokenizer().decode(prompt))
    return Case(model_of(family), prompt, text, max_new_tokens=14)


@cache
def with_few_positions() -> Any:
    """Return a GPT-2 with 64 learned positions."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, n_embd=16, n_layer=2, n_head=2, n_positions=64,
                        bos_token_id=None, eos_token_id=None, initializer_range=0.3)  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def near_the_limit(length: int) -> Case:
    """A prompt that leaves few positions."""
    piece = [5, 6, 7, 8] * 16
    return Case(
        with_few_positions(), piece[:length], TOKENIZER.decode(piece), max_new_tokens=64 - length
    )


PROCESSORS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}, {"min_new_tokens": 9},
    {"bad_words_ids": [[n] for n in range(4, 40)]}, {"suppress_tokens": list(range(4, 60))},
    {"sequence_bias": [[[70], 5.0]]}, {"forced_eos_token_id": 1},
]  # fmt: skip

SETTINGS: list[tuple[str, str, list[Callable[[], Case]]]] = [
    ("T01", "greedy, fp32, one case of each family",
     [lambda f=f: of_family(f) for f in ATTENTION]),
    ("T07", "GPT-2 up to its last position",
     [lambda n=n: near_the_limit(n) for n in range(4, 64, 5)]),
    ("T10", "stop string inside copied text",
     [lambda s=s: copying(stop=[s]) for s in ("nine", "END", ".", "75 m", "at", "s l", "e.")]),
    ("T11", "criterion on the last token", [lambda: copying(stopping_criteria=[AtComma])]),
    ("T12", "several end tokens inside copied text",
     [lambda c=c: copying(eos_token_id=[1, ids(c)[0]]) for c in ("7", ",", "E", ".")]),
    ("T13", "penalties, limits, biases",
     [lambda n=n, o=o: free(n, **o) for o in PROCESSORS for n in range(3)]),
    ("T14", "classifier-free guidance",
     [lambda n=n: free(n, guidance_scale=3.0) for n in range(8)]),
    ("T05", "recurrent state that can be put back",
     [lambda f=f: of_family(f) for f in HYBRID]),
    ("T06", "recurrent state, in most of them out of reach: decoded plainly",
     [lambda f=f: of_family(f) for f in RECURRENT]),
    ("T20", "`cache_implementation=\"static\"`, no cache",
     [lambda s=s: configured(1, **s) for s in ({"cache_implementation": "static"},
                                               {"use_cache": False})]),
    ("T17", "sampling, the same seed",
     [lambda n=n: free(n, do_sample=True, seed=n) for n in range(20)]),
]  # fmt: skip


def outcome(run: Callable[[bool], Any]) -> str:
    """Return what drafting does to an answer: "equal", "differs", or the error."""
    expected = run(False)
    try:
        return "equal" if run(True) == expected else "differs"
    except Exception as error:
        return type(error).__name__


def summed(outcomes: list[str]) -> str:
    """Return how many cases ended how."""
    parts = [f"{outcomes.count('equal')}/{len(outcomes)} equal"]
    parts += [
        f"{outcomes.count(name)} {name}" for name in sorted(set(outcomes) - {"equal", "differs"})
    ]
    return ", ".join(parts)


def rows() -> Iterator[dict[str, str]]:
    """Run all settings."""
    for row, what, makers in SETTINGS:
        cases = [make() for make in makers]
        ours = summed([outcome(case.ours) for case in cases])
        peers = summed([outcome(case.peers) for case in cases])
        yield {"row": row, "what": what, "ours": ours, "peer": peers}
    yield together()
    yield stateful()
    yield broken()


def together() -> dict[str, str]:
    """Decode two prompts at once: two requests here, a batch there."""
    cases = [free(0), free(3)]
    futures = [
        case.decoder.submit(case.prompt, references=[case.reference], max_new_tokens=40)
        for case in cases
    ]
    equal = [
        future.result().token_ids == case.ours(False)
        for future, case in zip(futures, cases, strict=True)
    ]
    batch = torch.tensor([case.prompt for case in cases])
    try:
        cases[0].model.generate(
            batch, attention_mask=torch.ones_like(batch), pad_token_id=0, max_new_tokens=40,
            **LOOKUP,
        )  # fmt: skip
        peer = "decoded"
    except ValueError:
        peer = "2 ValueError"
    ours = f"{sum(equal)}/2 equal"
    return {"row": "T18", "what": "two prompts at once", "ours": ours, "peer": peer}


def stateful() -> dict[str, str]:
    """Count how often a processor is called for 40 tokens."""
    counts = []
    for run in (Case.ours, Case.peers):
        Counter.calls = 0
        run(copying(logits_processor=[Counter]), True)
        counts.append(f"{Counter.calls} calls for 40 tokens")
    return {"row": "T15", "what": "a processor of the caller", "ours": counts[0], "peer": counts[1]}


def broken() -> dict[str, str]:
    """See what becomes of logits that are no numbers."""
    case = copying()
    case.model.logits_at = dict.fromkeys(range(40), torch.full((260,), float("nan")))
    try:
        ours = "an answer"
        case.ours(True)
    except NonFiniteLogitsError:
        ours = "NonFiniteLogitsError with the position"
    try:
        peer = f"{len(case.peers(True))} tokens, no error"
    except Exception as error:
        peer = type(error).__name__
    return {"row": "T31", "what": "logits are NaN", "ours": ours, "peer": peer}
