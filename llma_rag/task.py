"""What belongs to one request while it is decoded: its tokens, its limits, its counts."""

import time
from dataclasses import dataclass, field

from llma_rag.answer import Answer
from llma_rag.costs import CostCurve
from llma_rag.drafting import Drafter
from llma_rag.engine.step import Pass, Row
from llma_rag.experience import Experience
from llma_rag.grammar import Grammar
from llma_rag.result import DecodingStats, GenerationRequest, GenerationResult
from llma_rag.sampling import Chooser
from llma_rag.stopping import Criteria


@dataclass(slots=True)
class Counts:
    """Counts what one request costs, and times it in seconds."""

    prompt_tokens: int = 0
    forward_passes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cached_prompt_tokens: int = 0
    references: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    to_first_token: float = 0.0

    def add(self, step: Pass, accepted_tokens: int) -> None:
        """Count a pass and how many of its drafted tokens were accepted."""
        if not self.to_first_token:
            self.to_first_token = time.perf_counter() - self.started
        self.forward_passes += 1
        self.drafted_tokens += len(step.drafted)
        self.accepted_tokens += accepted_tokens


@dataclass(slots=True, kw_only=True)
class Task:
    """One request while it is decoded.

    Attributes:
        request: What was asked.
        context: Token ids of the prompt and of the answer so far.
        row: What the model remembers of them.
        answer: The answer so far.
        chooser: Chooses its tokens.
        criteria: The caller's reasons to stop.
        grammar: The form that the answer must have, if any.
        counts: What it cost so far.
        experience: What earlier requests of its namespace taught.
        drafter: Proposes continuations; made after the first token.
        costs: What it is told passes cost, if anything; made with it.
    """

    request: GenerationRequest
    context: list[int]
    row: Row
    answer: Answer
    chooser: Chooser
    criteria: Criteria
    grammar: Grammar | None
    counts: Counts
    experience: Experience
    drafter: Drafter | None = None
    costs: CostCurve | None = None

    @property
    def prompt(self) -> list[int]:
        """Token ids of the prompt."""
        return self.context[: self.counts.prompt_tokens]

    def result(self) -> GenerationResult:
        """Return the finished answer."""
        answer, counts = self.answer, self.counts
        return GenerationResult(
            text=answer.text,
            token_ids=tuple(answer.token_ids),
            finish_reason=answer.finish_reason or "length",
            copied_spans=answer.copied_spans(),
            stats=DecodingStats(
                prompt_tokens=counts.prompt_tokens,
                generated_tokens=len(answer.token_ids),
                forward_passes=counts.forward_passes,
                drafted_tokens=counts.drafted_tokens,
                accepted_tokens=counts.accepted_tokens,
                cached_prompt_tokens=counts.cached_prompt_tokens,
                time_to_first_token=counts.to_first_token,
                total_time=time.perf_counter() - counts.started,
                **counts.references,
            ),
        )
