"""The one loop: draft, forward, verify, commit. Everything a caller can ask of it is a view."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llma_rag.answer import Answer
from llma_rag.detokenizer import Detokenizer, StopStrings
from llma_rag.drafters import Drafters, Drafting
from llma_rag.drafting import Draft
from llma_rag.encoding import encode_prompt, special_tokens, spelled
from llma_rag.engine.options import Settings, resolve
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.prefixes import CHUNK, PrefixCache
from llma_rag.engine.processors import build_processors
from llma_rag.engine.step import Pass, StepRunner, check_model
from llma_rag.grammar import Grammar, GrammarCompiler
from llma_rag.own_tokenizer import OwnTokenizer
from llma_rag.provenance import joined
from llma_rag.result import (
    ContextOverflowError,
    FinishReason,
    GenerationChunk,
    GenerationOptions,
    GenerationRequest,
)
from llma_rag.sampling import Choose, Chooser, fresh_seed, likeliest
from llma_rag.stopping import Criteria
from llma_rag.task import Counts, Task
from llma_rag.verification import accepted
from llma_rag.worker import Decoding, Load

MAX_RESERVED = 1024
"""Tokens of an answer for which cache memory is taken at once."""


class Loop:
    """Decodes the requests of one model, each as a generator that asks for passes."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        runner: StepRunner,
        *,
        context_length: int,
        defaults: GenerationOptions,
        drafting: Drafting,
        prefixes: PrefixCache | None = None,
        load: Load | None = None,
    ) -> None:
        self._model = model
        self._own_tokenizer = OwnTokenizer(tokenizer)
        self._runner = runner
        self._context_length = context_length
        self._defaults = defaults
        self._drafting = drafting
        self._prefixes = prefixes
        self._load = load or Load()
        self._vocab_size = _vocab_size(model)
        self._use(self._own_tokenizer.current())

    def _use(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._grammars = GrammarCompiler(tokenizer, self._vocab_size)
        self._drafters = Drafters(
            tokenizer, self._drafting, banned_tokens=self._special, vocab_size=self._vocab_size,
            supports_trees=self._runner.supports_trees,
        )  # fmt: skip

    def decode(self, request: GenerationRequest) -> Decoding:
        """Decode one request: yields the passes it needs and the text it completes.

        Its times count from this call on, though nothing runs before the first `next`.
        """
        return self._decoded(request, Counts())

    def _decoded(self, request: GenerationRequest, counts: Counts) -> Decoding:
        task = self._task(request, counts)
        try:
            if task.answer.remaining > 0:
                yield from self._decode(task)
        except Exception:
            yield from _news(task.answer)
            raise
        finally:
            task.row.release()
        return task.result()

    def _decode(self, task: Task) -> Generator[Pass | GenerationChunk, Any, None]:
        context, answer = task.context, task.answer
        pending: Sequence[int] = tuple(context)
        if self._prefixes is not None:
            pending = yield from self._all_but_last_chunk(self._prefixes, task)
        draft, shown = Draft(), False
        step, outcome = yield from _run(Pass(task.row, pending))
        while True:
            likeliest = self._likeliest(outcome, task)
            choose = task.chooser.over(outcome, context)  # waits for the pass
            _observe(step, outcome, task)
            nodes = _commit(step, draft, choose, task)
            task.counts.add(step, len(nodes))
            if answer.finish_reason is not None:
                break
            # The first token is shown at once, later ones while the device runs the next step.
            late = shown and self._runner.is_asynchronous and self._load.active <= 1
            if not late:
                yield from _news(answer)
            shown = True
            self._runner.keep(step, nodes)
            _recycle(step, nodes, likeliest, task)
            draft = self._draft(task)
            following = Pass(task.row, context[-1:], draft.tokens, draft.parents)
            step, outcome = yield from _run(following)
            yield from _news(answer)
        yield from _news(answer)
        self._drafters.store(task)

    def _likeliest(self, outcome: Outcome, task: Task) -> Callable[[], np.ndarray] | None:
        """Return what waits for the tokens to recycle; None where nothing is recycled.

        On a device that runs on by itself they are looked for at once, behind the step.
        """
        recycler = task.experience.recycler
        if recycler is None or not task.request.draft:
            return None
        width = recycler.width
        if not self._runner.is_asynchronous:
            return lambda: np.asarray(likeliest(outcome.logits, width).cpu())
        found = likeliest(outcome.logits, width)
        return lambda: np.asarray(found.cpu())

    def _all_but_last_chunk(
        self, prefixes: PrefixCache, task: Task
    ) -> Generator[Any, Any, Sequence[int]]:
        """Find or compute the prompt's chunks; return the tokens behind them, at least one."""
        row, prompt, namespace = task.row, tuple(task.context), task.request.namespace
        task.counts.cached_prompt_tokens = start = prefixes.restore(row, prompt, namespace)
        while len(prompt) - start > CHUNK:
            step, _ = yield from _run(Pass(row, prompt[start : start + CHUNK]))
            self._runner.keep(step, [])
            start += CHUNK
        prefixes.store(row, namespace)
        return prompt[start:]

    def _task(self, request: GenerationRequest, counts: Counts) -> Task:
        tokenizer = self._own_tokenizer.current()
        if tokenizer is not self._tokenizer:
            self._use(tokenizer)
        self._drafters.check(request)
        check_model(self._model)
        context = encode_prompt(self._tokenizer, request.prompt, self._vocab_size)
        counts.prompt_tokens = len(context)
        generation_config = self._model.generation_config
        assert generation_config is not None, "a causal language model has a generation config"
        settings = resolve(generation_config, self._defaults, request.options, len(context))
        room = self._context_length - len(context)
        if room < 1:
            raise ContextOverflowError(
                f"The prompt has {len(context)} tokens, and the model's context holds "
                f"{self._context_length} with the answer; shorten the prompt, for example by "
                "retrieving fewer or smaller passages."
            )
        settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
        grammar = None
        structure = settings.structure
        if structure is not None:
            ends = self._grammars.end_tokens(settings.end_tokens)
            settings = replace(settings, end_tokens=ends)
            grammar = self._grammars.start(structure, ends, len(context))
        return Task(
            request=request,
            context=context,
            row=self._runner.open_row(len(context) + min(settings.max_new_tokens, MAX_RESERVED)),
            answer=self._answer(settings),
            chooser=self._chooser(settings, counts, grammar),
            criteria=Criteria(settings, self._model.device),
            grammar=grammar,
            counts=counts,
            experience=self._drafters.experience(request),
        )

    def _chooser(self, settings: Settings, counts: Counts, grammar: Grammar | None) -> Chooser:
        def counted(*args: Any, **arguments: Any) -> Any:
            counts.forward_passes += 1
            return self._runner.forward(*args, **arguments)

        processors = build_processors(
            settings,
            prompt_length=counts.prompt_tokens,
            device=self._model.device,
            model=counted,
            vocab_size=self._vocab_size,
            structure=grammar,
        )
        seed = None
        if settings.sample:
            seed = fresh_seed() if settings.seed is None else settings.seed
        return Chooser(
            processors, seed=seed, check_logits=not settings.config.remove_invalid_values
        )

    def _answer(self, settings: Settings) -> Answer:
        # What has a form ends where that is complete, whatever its text holds.
        stop = settings.stop if settings.structure is None else ()
        return Answer(
            Detokenizer(self._tokenizer),
            StopStrings(stop),
            end_tokens=frozenset(settings.end_tokens),
            special=spelled(self._tokenizer, self._special) if stop else {},
            max_new_tokens=settings.max_new_tokens,
        )

    def _draft(self, task: Task) -> Draft:
        if not task.request.draft:
            return Draft()
        limit = min(self._drafting.max_draft_tokens, self._runner.draft_limit(task.row))
        budget = min(task.answer.remaining - 1, limit)
        if budget < 1:
            return Draft()

        def copied() -> Draft:
            if task.drafter is None:
                peer = self._drafting.peer
                task.drafter = self._drafters.make(task) if peer is None else peer(task.prompt)
            return task.drafter.draft(task.context, budget)

        if task.grammar is None:
            return copied()
        return task.grammar.draft(task.context, copied, budget)


def _news(answer: Answer) -> Iterator[GenerationChunk]:
    """Yield what was committed since the last chunk, if anything."""
    chunk = answer.next_chunk()
    if chunk is not None:
        yield chunk


def _observe(step: Pass, outcome: Outcome, task: Task) -> None:
    """Learn what passes cost from one that has just ended."""
    usual = len(step.committed) == 1 and not step.row.owed
    if task.costs is not None and usual and outcome.started is not None:
        seconds = time.perf_counter() - outcome.started
        width, branches = 1 + len(step.drafted), not step.is_chain
        task.costs.observe(width, seconds, branches=branches, request=task.counts)


def _recycle(
    step: Pass, nodes: Sequence[int], likeliest: Callable[[], np.ndarray] | None, task: Task
) -> None:
    """Remember the likeliest tokens behind those of a pass; accepted ones count last."""
    recycler = task.experience.recycler
    if recycler is None or likeliest is None:
        return
    refused = set(range(len(step.drafted))).difference(nodes)
    order = [*(1 + node for node in sorted(refused)), 0, *(1 + node for node in nodes)]
    tokens = (step.committed[-1], *step.drafted)
    recycler.observe([tokens[row] for row in order], likeliest()[order])


def _commit(step: Pass, draft: Draft, choose: Choose, task: Task) -> list[int]:
    """Append what the model chose to the context and the answer; return the accepted nodes."""
    nodes: list[int] = []
    try:
        for token, node in accepted(step.drafted, step.parents, choose):
            task.context.append(token)
            if node is not None:
                nodes.append(node)
            goes_on = task.answer.commit(token)
            reason = _stopped(task)
            if reason is not None:
                task.answer.end(reason)
            if not goes_on or reason is not None:
                break
    finally:  # what was accepted before an error is delivered
        task.answer.trace(joined([draft.places[node] for node in nodes]))
    return nodes


def _stopped(task: Task) -> FinishReason | None:
    """Return why the caller's criteria end the answer here; None if it goes on."""
    reason = task.criteria(task.context)
    if reason != "stop" or task.grammar is None or task.answer.finish_reason == "stop":
        return reason
    return "stop" if task.grammar.is_complete(task.context) else "length"


def _run(step: Pass) -> Generator[Any, Any, tuple[Pass, Outcome]]:
    """Ask for a pass; where memory runs out, ask again with half of the draft."""
    while True:
        try:
            return step, (yield step)
        except torch.OutOfMemoryError:
            half = len(step.drafted) // 2
            if not step.drafted:
                raise
            step = Pass(step.row, step.committed, step.drafted[:half], step.parents[:half])


def _vocab_size(model: PreTrainedModel) -> int:
    """Return how many token ids the model takes; a resized or padded vocabulary counts."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0])
