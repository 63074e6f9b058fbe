"""Choose a token from logits: the likeliest one."""

from collections.abc import Callable

import torch

from llma_rag.result import NonFiniteLogitsError


def greedy(logits: torch.Tensor, first_position: int) -> Callable[[int], int]:
    """Return the likeliest token behind each draft node; `-1` stands for the context's end.

    Args:
        logits: [1 + draft nodes, vocabulary], of any floating dtype.
        first_position: Position of the token to be chosen first; named in errors.

    Raises:
        NonFiniteLogitsError: By the returned function, where the logits of a node are no numbers.
    """
    values = logits.float()
    best = values.argmax(-1)
    finite = torch.isfinite(values.gather(-1, best[:, None])[:, 0])
    tokens, usable = torch.stack((best, finite.long())).tolist()
    chosen = 0

    def choose(node: int) -> int:
        nonlocal chosen
        if not usable[node + 1]:
            raise NonFiniteLogitsError(first_position + chosen)
        chosen += 1
        return int(tokens[node + 1])

    return choose
