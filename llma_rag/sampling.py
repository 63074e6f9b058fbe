"""Choose tokens from logits: the likeliest, or drawn with noise that seed and position fix."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from llma_rag.engine.outcome import Outcome, usable
from llma_rag.engine.processors import Processor
from llma_rag.result import NonFiniteLogitsError

NOISE_RANGE = 42.0
"""No two tokens' noise differs by more: a score that far below the best one is never drawn."""

GROWTH = 512
"""Tokens by which `InputIds` is enlarged at least."""

BLOCK = 64
"""Logits that `likeliest` looks at together; up to 63 at the end of a vocabulary are left out."""

Choose = Callable[[int], int]
"""Gives the model's token after a draft node; `-1` stands for the end of the context."""


class InputIds:
    """The committed tokens as transformers' processors and criteria want them."""

    def __init__(self, device: torch.device | str) -> None:
        self._ids = torch.zeros((1, 0), dtype=torch.long, device=device)
        self._known = 0

    def of(self, context: Sequence[int]) -> torch.Tensor:
        """Return `context` as int64, [1, tokens]; between two calls it only grows."""
        count = len(context)
        if count > self._ids.shape[1]:
            larger = self._ids.new_zeros((1, max(count + GROWTH, 2 * self._known)))
            larger[:, : self._known] = self._ids[:, : self._known]
            self._ids = larger
        if count > self._known:
            new = torch.tensor(context[self._known :], device=self._ids.device)
            self._ids[0, self._known : count] = new
            self._known = count
        return self._ids[:, :count]


class Chooser:
    """Chooses the tokens of one request.

    Each processor is called once for every committed token, in order: what a draft proposed and
    the model refused is never shown to it, so it may keep state.
    """

    def __init__(
        self, processors: Sequence[Processor], *, seed: int | None, check_logits: bool = True
    ) -> None:
        """Take what the request asks for.

        Args:
            processors: Change the scores, one after the other.
            seed: Fixes the draws; None takes the likeliest token.
            check_logits: Whether logits that are no numbers are an error.
        """
        self._processors = tuple(processors)
        self._seed = seed
        self._check_logits = check_logits
        self._ids: InputIds | None = None

    def over(self, outcome: Outcome, context: Sequence[int]) -> Choose:
        """Return a function that chooses the token behind a node of the pass.

        Args:
            outcome: Of the pass.
            context: Prompt and answer; holds every committed token when the function is called.

        Raises:
            NonFiniteLogitsError: By the returned function, where the logits of a node are no
                numbers.
            ValueError: By the returned function, where the options forbid every token.
        """
        if not self._processors and self._seed is None:
            return greedy(outcome, context)
        return self._processed(outcome.logits, context)

    def _processed(self, logits: torch.Tensor, context: Sequence[int]) -> Choose:
        is_usable = usable(logits).tolist() if self._check_logits else None
        if self._ids is None:
            self._ids = InputIds(logits.device)
        ids = self._ids

        @torch.no_grad()
        def choose(node: int) -> int:
            row = node + 1
            if is_usable is not None and not is_usable[row]:
                raise NonFiniteLogitsError(len(context))
            scores = logits[row : row + 1].to(torch.float32, copy=True)
            for process in self._processors:
                scores = _checked(process(ids.of(context), scores), scores, process)
            return self._pick(scores[0], len(context))

        return choose

    def _pick(self, scores: torch.Tensor, position: int) -> int:
        if self._seed is None:
            token = int(scores.argmax(-1))
            _check_best(float(scores[token]), position)
            return token
        values = scores.cpu().double().numpy()  # in this order: MPS has no float64
        best = values.max()
        _check_best(best, position)
        tokens = np.flatnonzero((values > best - NOISE_RANGE) | (values == best))
        return int(tokens[np.argmax(values[tokens] + gumbel(self._seed, position, tokens))])


def greedy(outcome: Outcome, context: Sequence[int]) -> Choose:
    """Return the likeliest token behind each draft node, with one transfer for all of them.

    Args:
        outcome: Of the pass.
        context: Prompt and answer; its length is the position that errors name.

    Raises:
        NonFiniteLogitsError: By the returned function, where the logits of a node are no numbers.
    """
    tokens = outcome.likeliest()

    def choose(node: int) -> int:
        if tokens[node + 1] < 0:
            raise NonFiniteLogitsError(len(context))
        return tokens[node + 1]

    return choose


def likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ids of the `count` largest logits of each row, largest first, [rows, count].

    They lie in the `count` blocks with the largest maxima; finding those first is quicker than
    `topk` over a large vocabulary.

    >>> likeliest(torch.tensor([[0.1, 0.9, 0.5]]), 2).tolist()
    [[1, 2]]
    """
    rows, size = logits.shape
    if size < 4 * BLOCK * count:
        return logits.topk(min(count, size)).indices
    whole = logits[:, : size - size % BLOCK].reshape(rows, -1, BLOCK)
    blocks = whole.amax(-1).topk(count).indices
    inside = whole.gather(1, blocks[:, :, None].expand(-1, -1, BLOCK)).reshape(rows, -1)
    best = inside.topk(count).indices
    return blocks.gather(1, best // BLOCK) * BLOCK + best % BLOCK


def gumbel(seed: int, position: int, tokens: np.ndarray) -> np.ndarray:
    """Return Gumbel noise, float64, that depends on seed, position and token alone.

    Adding it to log-probabilities and taking the maximum draws a token (the Gumbel-max trick).
    Random numbers come from SplitMix64 (doi:10.1145/2660193.2660195) started at a hash of seed and
    position; a token's number is the stream's output of that index.

    >>> bool(gumbel(1, 7, np.array([3, 5]))[1] == gumbel(1, 7, np.array([5]))[0])
    True
    """
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=8).digest()
    start = np.uint64(int.from_bytes(digest, "little"))
    with np.errstate(over="ignore"):
        bits = start + (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: np.ndarray = -np.log(-np.log(uniform))
    return noise


def fresh_seed() -> int:
    """Return a seed from torch's generator, so that `torch.manual_seed` governs it."""
    return int(torch.randint(1 << 62, (), dtype=torch.long))


def _checked(scores: object, before: torch.Tensor, process: object) -> torch.Tensor:
    """Return the scores that a processor gave, which must be as many as before."""
    if isinstance(scores, torch.Tensor) and scores.shape == before.shape:
        return scores
    given = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    raise ValueError(
        f"`logits_processor` must hold processors that return scores of shape "
        f"{tuple(before.shape)}, got {given} from {type(process).__name__}."
    )


def _check_best(score: float, position: int) -> None:
    """Refuse what the options made of logits that were numbers when the model returned them."""
    if score == -np.inf or np.isnan(score):
        raise ValueError(
            f"The options forbid every token at position {position}, or make scores that are no "
            "numbers; loosen `suppress_tokens`, `bad_words_ids`, the grammar or the caller's "
            "logits processors."
        )
