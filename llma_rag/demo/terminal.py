"""Show answers in a terminal; whatever comes from documents or a model is shown, never obeyed."""

import unicodedata
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from llma_rag.demo.sources import SourcedSpan

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REPLACEMENT = "\ufffd"


def inert(text: str) -> str:
    r"""Replace characters that steer a terminal, one for one, so that offsets stay right.

    Control characters (except line feed and tab), marks that turn the writing direction and lone
    surrogates are replaced.

    >>> inert("a\x1b[31mb")
    'a\ufffd[31mb'
    """
    return "".join(_REPLACEMENT if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _DIRECTIONS or unicodedata.category(character) in {"Cc", "Cs"}


class Palette:
    """Gives each source a colour, the same one for as long as the palette lives."""

    def __init__(self) -> None:
        self._colours: dict[str, str] = {}

    def colour(self, source: str) -> str:
        """Return the colour of a source."""
        return self._colours.setdefault(source, _COLOURS[len(self._colours) % len(_COLOURS)])


class AnswerView:
    """An answer that grows on the screen, its copied spans in the colours of their documents.

    Outside a terminal nothing is printed before the answer is finished.
    """

    def __init__(self, console: Console, palette: Palette) -> None:
        self._console = console
        self._palette = palette
        self._text = Text()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def show(self, answer: str, spans: Iterable[SourcedSpan]) -> None:
        """Show what has been written so far."""
        self._text = coloured(answer, spans, self._palette)
        if self._live is not None:
            self._live.update(self._text, refresh=True)

    def finish(self) -> None:
        """Leave the answer as it was shown last."""
        if self._live is not None:
            self._live.stop()
        elif self._text:
            self._console.print(self._text)


def coloured(answer: str, spans: Iterable[SourcedSpan], palette: Palette) -> Text:
    """Return an answer as text without markup; spans count characters of `answer`."""
    text = Text(inert(answer))
    for span in spans:
        text.stylize(palette.colour(span.source), span.start, span.end)
    return text


def legend(sources: Iterable[str], palette: Palette) -> Text:
    """Return the names of sources in their colours."""
    names = [Text(inert(source), style=palette.colour(source)) for source in sources]
    return Text("sources: ") + Text(", ").join(names) if names else Text("sources: none copied")


def cost_line(tokens: int, forwards: int) -> str:
    """Return tokens and forward passes of an answer in words."""
    rate = tokens / forwards if forwards else 0.0
    return f"{tokens} tokens, {forwards} forward passes, {rate:.2f} tokens per forward"
