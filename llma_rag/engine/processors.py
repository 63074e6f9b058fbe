"""Build the logits processors of a request, in the order in which transformers applies them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from llma_rag.engine.options import Settings

Processor = Callable[[Any, torch.Tensor], torch.Tensor]
"""Takes ids [1, n] and scores [1, vocabulary], returns scores; called once per position."""

LEAST_TEMPERATURE = 1e-30
"""A score divided by less is infinite."""


class RepeatPenalty:
    """Lower the scores of tokens that the answer holds already, as OpenAI's interface does.

    Source: `presence_penalty` and `frequency_penalty` of the OpenAI completions interface; the
    prompt does not count.
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return [1, vocabulary] scores, each less what the token's count in the answer costs."""
        answer = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(
            1, answer, torch.ones_like(answer, dtype=scores.dtype)
        )
        return scores - self._frequency * counts - self._presence * (counts > 0)


def build_processors(
    settings: Settings,
    *,
    prompt_length: int,
    device: torch.device,
    model: Callable[..., Any],
    vocab_size: int,
    structure: Processor | None = None,
) -> list[Processor]:
    """Return the processors of one request.

    Args:
        settings: What the request sets.
        prompt_length: Tokens of the prompt.
        device: Where the scores are.
        model: Runs a forward pass; called for guidance only.
        vocab_size: Width of the scores.
        structure: Forbids the tokens that a grammar forbids.

    Raises:
        ValueError: If an option is out of range.
    """
    place = _Placed(settings, prompt_length, prompt_length + settings.max_new_tokens, str(device))
    own = [*_guidance(settings, model), *_penalties(place), *_limits(place)]
    processors = _with_callers(own, settings.processors)
    if structure is not None:
        processors.append(structure)
    if settings.sample:
        processors += _warpers(settings, device)
    config = settings.config
    if config.watermarking_config is not None:
        processors.append(config.watermarking_config.construct_processor(vocab_size, device))
    if config.renormalize_logits:
        processors.append(LogitNormalization())
    return processors


class _Placed:
    """What the processors need to know beside the configuration."""

    def __init__(self, settings: Settings, start: int, end: int, device: str) -> None:
        self.settings = settings
        self.config = settings.config
        self.start = start
        self.end = end
        self.device = device
        self.end_tokens = list(settings.end_tokens)


def _guidance(settings: Settings, model: Callable[..., Any]) -> Iterator[Processor]:
    scale = settings.config.guidance_scale
    if scale is not None and scale != 1:
        yield UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model)


def _penalties(place: _Placed) -> Iterator[Processor]:
    config, settings = place.config, place.settings
    if config.sequence_bias is not None:
        yield SequenceBiasLogitsProcessor(sequence_bias=config.sequence_bias)
    if config.repetition_penalty is not None and config.repetition_penalty != 1:
        yield RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty))
    if settings.presence_penalty or settings.frequency_penalty:
        yield RepeatPenalty(settings.presence_penalty, settings.frequency_penalty, place.start)
    if config.no_repeat_ngram_size:
        yield NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)
    if config.bad_words_ids is not None:
        words = [list(word) for word in config.bad_words_ids]
        yield NoBadWordsLogitsProcessor(words, place.end_tokens or None)


def _limits(place: _Placed) -> Iterator[Processor]:
    config, device = place.config, place.device
    yield from _minimum(place)
    if config.forced_bos_token_id is not None:
        yield ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id)
    if config.forced_eos_token_id is not None:
        yield ForcedEOSTokenLogitsProcessor(place.end, config.forced_eos_token_id, device=device)
    if config.remove_invalid_values:
        yield InfNanRemoveLogitsProcessor()
    if config.exponential_decay_length_penalty is not None:
        yield _decay(place)
    if config.suppress_tokens is not None:
        yield SuppressTokensLogitsProcessor(config.suppress_tokens, device=device)
    if config.begin_suppress_tokens is not None:
        late = place.start <= 1 and config.forced_bos_token_id is not None
        yield SuppressTokensAtBeginLogitsProcessor(
            config.begin_suppress_tokens, place.start + late, device=device
        )


def _minimum(place: _Placed) -> Iterator[Processor]:
    config, device, ends = place.config, place.device, place.end_tokens
    if ends and config.min_length:
        yield MinLengthLogitsProcessor(config.min_length, ends, device=device)
    if ends and config.min_new_tokens:
        yield MinNewTokensLengthLogitsProcessor(
            place.start, config.min_new_tokens, ends, device=device
        )


def _decay(place: _Placed) -> Processor:
    if not place.end_tokens:
        raise ValueError(
            "`exponential_decay_length_penalty` needs an end token, and the model has none; "
            "pass `eos_token_id`."
        )
    ends = torch.tensor(place.end_tokens, device=place.device)
    return ExponentialDecayLengthPenalty(
        place.config.exponential_decay_length_penalty, ends, place.start
    )


def _with_callers(own: Sequence[Processor], callers: Sequence[Processor]) -> list[Processor]:
    """Append the caller's processors; one of a class that is there already takes its place."""
    given = {type(one): one for one in reversed(callers)}
    merged = [given.get(type(one), one) for one in own]
    return [*merged, *(one for one in callers if not any(one is other for other in merged))]


def _warpers(settings: Settings, device: torch.device) -> Iterator[Processor]:
    config = settings.config
    if config.temperature is not None and config.temperature != 1:
        if not config.temperature >= LEAST_TEMPERATURE:
            raise ValueError(
                f"`temperature` must be 0, which takes the likeliest token, or at least "
                f"{LEAST_TEMPERATURE}, got {config.temperature}."
            )
        yield TemperatureLogitsWarper(float(config.temperature))
    if getattr(config, "top_h", None) is not None:
        yield TopHLogitsWarper(top_h=config.top_h)
    if config.top_k:
        yield TopKLogitsWarper(config.top_k)
    if config.top_p is not None and config.top_p < 1:
        yield TopPLogitsWarper(config.top_p)
    if config.min_p is not None:
        yield MinPLogitsWarper(config.min_p)
    yield from _cutoffs(settings, device)


def _cutoffs(settings: Settings, device: torch.device) -> Iterator[Processor]:
    config = settings.config
    if config.typical_p is not None and config.typical_p < 1:
        yield TypicalLogitsWarper(config.typical_p)
    if config.epsilon_cutoff is not None and 0 < config.epsilon_cutoff < 1:
        yield EpsilonLogitsWarper(config.epsilon_cutoff)
    if config.eta_cutoff is not None and 0 < config.eta_cutoff < 1:
        yield EtaLogitsWarper(config.eta_cutoff, device=str(device))
