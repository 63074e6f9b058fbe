"""Write conversations in the form of chat templates that take one system message only."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, TypeAlias, TypeVar

from jinja2 import TemplateError

Turn: TypeAlias = dict[str, Any]
Written = TypeVar("Written")


def written_by_template(
    write: Callable[[Sequence[Turn]], Written], turns: Sequence[Turn]
) -> Written:
    """Return what a chat template makes of turns.

    Several system messages at the beginning stay apart, unless the template refuses them: then
    they are joined.

    Args:
        write: Applies the template to turns, mappings with `role` and `content`.
        turns: The conversation.

    Raises:
        jinja2.TemplateError: If the template refuses the joined ones too.
    """
    try:
        return write(turns)
    except TemplateError:
        joined = _with_one_system_message(turns)
        if len(joined) == len(turns):
            raise
        return write(joined)


def _with_one_system_message(turns: Sequence[Turn]) -> list[Turn]:
    first = list(takewhile(lambda turn: turn["role"] == "system", turns))
    content = "\n".join(turn["content"] for turn in first if turn["content"])
    return [{"role": "system", "content": content}] * bool(first) + list(turns[len(first) :])
