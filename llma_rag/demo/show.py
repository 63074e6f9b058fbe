"""Run the demo for a person: answers as they are written, what they cost, whether they agree."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from llma_rag.demo.running import Demo, Row
from llma_rag.demo.sources import SourcedSpan
from llma_rag.demo.terminal import AnswerView, Palette, cost_line, inert, legend

_TITLES = {"langchain": "LangChain chain", "llama-index": "LlamaIndex query engine"}


class Show:
    """Prints the demo as it runs.

    Attributes:
        console: Where to.
        palette: Colours of the documents.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.palette = Palette()
        self._framework = ""
        self._view: AnswerView | None = None

    def run(self) -> list[Row]:
        """Run the whole demo and return its rows."""
        self.console.print("Indexing the documents and loading the model.", style="dim")
        demo = Demo()
        documents = {passage.source for passage in demo.passages}
        self.console.print(
            f"{len(documents)} documents, {len(demo.passages)} passages in FAISS.", style="dim"
        )
        rows = []
        for row in demo.rows(before=self._begin, watch=self._grow):
            self._end(row)
            rows.append(row)
        self.console.print(Text(summary(rows)))
        return rows

    def _begin(self, framework: str, question: str) -> None:
        if framework != self._framework:
            self._framework = framework
            self.console.rule(_TITLES[framework])
        self.console.print(Text(f"\n{inert(question)}", style="bold"))
        self._view = AnswerView(self.console, self.palette)

    def _grow(self, answer: str, spans: Iterable[SourcedSpan]) -> None:
        if self._view is not None:
            self._view.show(answer, spans)

    def _end(self, row: Row) -> None:
        if self._view is not None:
            self._view.finish()
        self.console.print(legend(row.sources, self.palette))
        self.console.print(Text(row_line(row), style="dim" if row.identical else "bold red"))


def row_line(row: Row) -> str:
    """Return what an answer cost and whether it is the one of plain decoding."""
    return (
        f"{cost_line(row.tokens, row.forwards)}; {row.seconds:.2f} s, "
        f"{row.seconds_plain:.2f} s without references, "
        f"{row.seconds_generate:.2f} s with transformers.generate; "
        f"identical: {'yes' if row.identical else 'no'}"
    )


def summary(rows: Iterable[Row]) -> str:
    """Return the totals of a demo in one line."""
    listed = list(rows)
    tokens, forwards = sum(row.tokens for row in listed), sum(row.forwards for row in listed)
    same = sum(row.identical for row in listed)
    return f"\n{len(listed)} answers, {same} identical; {cost_line(tokens, forwards)} in all."
