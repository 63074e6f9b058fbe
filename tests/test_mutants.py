"""Break the decoder on purpose: the named test must fail on each mutant.

`test_decoder_mutants.py` holds four more: one token too many, no rollback, no cut behind an
accepted end token, a limit that is off by one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from llma_rag import Reference, decoder, detokenizer, drafters, grammar, loop, sampling
from llma_rag.answer import Answer
from llma_rag.engine import options, probe, processors, twin
from llma_rag.engine.options import Settings
from llma_rag.engine.outcome import Outcome
from llma_rag.reference import AcceptedReferences, accept_references
from llma_rag.sampling import Chooser, InputIds
from llma_rag.stopping import Criteria
from tests import test_losslessness_caches as caches
from tests import test_losslessness_failures as failures
from tests import test_losslessness_options as option_tests
from tests import test_losslessness_requests as requests
from tests import test_losslessness_sampling as sampling_tests
from tests import test_losslessness_stops as stops
from tests import test_losslessness_text as texts
from tests import test_probe as probes

_end, _over, _criteria = Answer.end, Chooser.over, Criteria.__call__
_add = detokenizer.StopStrings.add
_gumbel, _resolve = sampling.gumbel, loop.resolve
_encode, _retrieved = drafters.encode_references, list[Reference]()


def eager(self: Chooser, outcome: Outcome, context: Sequence[int]) -> Callable[[int], int]:
    """Process every node of the draft at once, as if the context did not grow."""
    choose = _over(self, outcome, list(context))
    chosen = [choose(node) for node in range(-1, len(outcome.logits) - 1)]
    return lambda node: chosen[node + 1]


def unchecked(outcome: Outcome, context: Sequence[int]) -> Callable[[int], int]:
    """Take whatever is the largest, also where it is no number."""
    tokens = outcome.logits.float().nan_to_num().argmax(-1).tolist()
    return lambda node: tokens[node + 1]


def at_the_end_of_a_run(self: Criteria, context: Sequence[int]) -> Any:
    """Ask the criteria at every third length only."""
    return _criteria(self, context) if len(context) % 3 == 0 else None


def only_new_text(self: detokenizer.StopStrings, new: str, *, hidden: bool = False) -> int | None:
    """Look for stop strings inside the last piece of text only."""
    self._longest = 1
    return _add(self, new, hidden=hidden)


def last_stop(self: detokenizer.StopStrings, new: str, *, hidden: bool = False) -> int | None:
    """Cut at the last stop string in place of the first."""
    if _add(self, new, hidden=hidden) is None:
        return None
    return max(self._spelled.find(stop) for stop in self.strings)


def stale(self: InputIds, context: Sequence[int]) -> torch.Tensor:
    """Show processors the context of the first call for ever."""
    if not self._known:
        self._ids, self._known = torch.tensor([list(context)]), len(context)
    return self._ids


def greedy_always(*args: Any) -> Settings:
    """Turn a model that ships with sampling greedy."""
    from dataclasses import replace

    return replace(_resolve(*args), sample=False)


def first_bytes(self: detokenizer.Detokenizer, token_id: int) -> str:
    """Decode each token on its own."""
    new = self._decode([token_id])
    self._note(new)
    return new


def of_all_requests(tokenizer: Any, accepted: AcceptedReferences, most: int) -> Any:
    """Index what earlier requests retrieved, too."""
    _retrieved.extend(one for one in accepted.references if one not in _retrieved)
    return _encode(tokenizer, accept_references(_retrieved), most)


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[], Any]]] = {
    "stop strings are looked for in new text only": (
        detokenizer.StopStrings, "add", only_new_text,
        lambda: stops.test_T10_stop_strings_cut_where_plain_decoding_cuts(0),
    ),
    "the last stop string cuts": (
        detokenizer.StopStrings, "add", last_stop,
        lambda: stops.test_T10_stop_strings_of_every_kind("x ab", ["b", "ab"]),
    ),
    "text that may become a stop string is shown": (
        detokenizer.StopStrings, "safe_length", lambda self: len(self._spelled),
        lambda: stops.test_T10_stop_strings_of_every_kind("copied text END more", ["END"]),
    ),
    "criteria are not asked at every length": (
        Criteria, "__call__", at_the_end_of_a_run,
        lambda: stops.test_T11_criteria_see_each_committed_length_once_in_order(4),
    ),
    "max_time is ignored": (
        Criteria, "__call__", lambda self, context: None,
        stops.test_T11_max_time_ends_the_answer_at_a_token,
    ),
    "end tokens are ignored": (
        Answer, "end", lambda self, reason: _end(self, reason) if reason == "length" else None,
        lambda: stops.test_T12_end_tokens_in_references_end_where_plain_decoding_ends(5, 0),
    ),
    "processors see the whole draft at once": (
        Chooser, "over", eager,
        option_tests.test_T15_a_stateful_processor_is_called_once_per_position_in_order,
    ),
    "processors see an old context": (
        InputIds, "of", stale,
        lambda: option_tests.test_T13_processors_give_what_generate_gives("repetition_penalty"),
    ),
    "a minimum of tokens is ignored": (
        processors, "_minimum", lambda place: iter(()),
        lambda: option_tests.test_T13_processors_give_what_generate_gives("min_new_tokens"),
    ),
    "guidance is ignored": (
        processors, "_guidance", lambda settings, model: iter(()),
        lambda: option_tests.test_T14_guidance_gives_what_generate_gives(3.0),
    ),
    "what is not supported is ignored": (
        options, "_refuse_unsupported", lambda config: None,
        lambda: option_tests.test_T19_what_is_not_decoded_here_is_refused_by_name("num_beams"),
    ),
    "sampling is turned off": (
        loop, "resolve", greedy_always,
        option_tests.test_a_model_that_ships_with_sampling_is_sampled,
    ),
    "noise does not depend on the position": (
        sampling, "gumbel", lambda seed, position, tokens: _gumbel(seed, 0, tokens),
        lambda: sampling_tests.test_T17_draws_have_the_distribution_of_the_scores(40, False),
    ),
    "noise is missing": (
        sampling, "gumbel", lambda seed, position, tokens: np.zeros(len(tokens)),
        lambda: sampling_tests.test_T17_draws_have_the_distribution_of_the_scores(5, True),
    ),
    "noise is drawn anew at every call": (
        sampling, "gumbel",
        lambda seed, position, tokens: np.random.default_rng().gumbel(size=len(tokens)),
        lambda: sampling_tests.test_T17_a_seed_gives_the_same_tokens_under_any_draft(0),
    ),
    "logits are not checked": (
        sampling, "greedy", unchecked,
        lambda: failures.test_T31_logits_that_are_no_numbers_are_named(float("nan"), {}, 1),
    ),
    "tokens are decoded one by one": (
        detokenizer.Detokenizer, "add", first_bytes,
        lambda: texts.test_T24_odd_text_is_copied_as_it_is("joined emoji"),
    ),
    "references outlive their request": (
        drafters, "encode_references", of_all_requests,
        requests.test_T32_nothing_of_one_tenant_is_drafted_or_cited_for_another,
    ),
    "exchanged modules are not noticed": (
        decoder, "picture", lambda model: (),
        lambda: caches.test_T33_adapters_count_from_the_next_request_on("sdpa", True),
    ),
    "the twin keeps what adapters are switched to": (
        twin, "_is_known", lambda kind: True,
        lambda: caches.test_T33_adapters_count_from_the_next_request_on("sdpa", False),
    ),
    "a quantised cache is taken for an exact one": (
        options, "_refuse_unsupported", lambda config: None,
        caches.test_T20_a_quantised_cache_is_refused_since_it_would_give_other_tokens,
    ),
    "the probe takes a padded vocabulary for an error": (
        probe, "usable", lambda logits: torch.isfinite(logits).all(-1),
        lambda: probes.test_a_padded_vocabulary_at_minus_infinity_is_exact(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_killed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, mutant, kills = MUTANTS[name]
    assert getattr(place, attribute) is not mutant
    monkeypatch.setattr(place, attribute, mutant)
    with pytest.raises(
        (AssertionError, pytest.fail.Exception, ValueError, IndexError, UserWarning)
    ):
        kills()


def _unmasked(self: grammar.Grammar, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores


def _too_far(self: grammar.Grammar, context: Any, copied: Any, budget: int) -> Any:
    draft = copied()
    self._matcher.consume_tokens(list(draft.tokens[:1]))
    return draft


@pytest.mark.parametrize(("attribute", "mutant"), [("__call__", _unmasked), ("draft", _too_far)])
def test_each_mutant_of_the_grammar_is_killed(
    attribute: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance", reason="structured answers are an optional extra")
    from tests import test_structured as structured

    def kills() -> None:
        structured.test_copies_and_forced_text_go_together()
        structured.test_answers_of_a_random_model_are_valid_and_the_same(0, {})

    monkeypatch.setattr(grammar.Grammar, attribute, mutant)
    with pytest.raises((AssertionError, ValueError)):
        kills()
