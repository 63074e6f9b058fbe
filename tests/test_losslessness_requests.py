"""Rows T18 and T32: requests that are decoded at the same time do not touch each other.

`LLMA_RAG_SOAK` sets the number of requests of T32; 10,000 take some minutes.
"""

import asyncio
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedTokenizerFast

from llma_rag import Decoder, GenerationResult, NonFiniteLogitsError, Reference
from llma_rag.engine.step import Pass
from tests.families import build
from tests.models import character_tokenizer, of_generate

REQUESTS = int(os.environ.get("LLMA_RAG_SOAK", "300"))
THREADS, TASKS, TENANTS = 32, 100, 25
CANARIES = 4
"""Words that stand in the references of one tenant and in no prompt, and are never answered."""

COMMON = 40
"""Words that prompts and answers are made of."""

POISON = 95
"""A token whose embedding is no number."""


class Waiting:
    """A logits processor that holds the worker until all requests are there."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert self.open.wait(20)
        return scores


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral_window", "lfm2", "bloom"])
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_T18_rows_decoded_together_are_as_if_alone(family: str, rows: int) -> None:
    """Prompts and answers of other lengths, ragged accepts; the first row ends after one token and
    the last one has no finite logits."""
    model, source = build(family, seed=rows), random.Random(rows)
    decoder = Decoder(model, character_tokenizer())
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("nan")
    prompts = [
        [source.randrange(4, 90) for _ in range(source.randrange(1, 20))] for _ in range(rows)
    ]
    counts = [1, *(source.randrange(8, 30) for _ in range(rows - 1))]
    alone = [
        of_generate(model, prompt, max_new_tokens=count, do_sample=False)
        for prompt, count in zip(prompts, counts, strict=True)
    ]
    texts = [character_tokenizer().decode(one) for one in alone]
    prompts[-1].append(POISON)
    gate = Waiting()
    futures = [
        decoder.submit(
            prompt,
            references=[text[: 3 + 5 * row], text[8:]],
            max_new_tokens=count,
            logits_processor=[gate] if row == 0 else [],
        )
        for row, (prompt, text, count) in enumerate(zip(prompts, texts, counts, strict=True))
    ]
    gate.open.set()
    with pytest.raises(NonFiniteLogitsError) as caught:
        futures.pop().result(20)
    assert caught.value.position == len(prompts[-1])
    results = [future.result(20) for future in futures]
    assert [list(result.token_ids) for result in results] == alone[:-1]
    assert sum(result.stats.accepted_tokens for result in results) > 0 or rows == 2


@pytest.mark.parametrize("kind", ["list", "tensor"])
def test_a_request_is_what_it_was_when_it_was_made(kind: str) -> None:
    """The caller fills the same lists for the next request while this one waits its turn."""
    decoder, gate = Decoder(build("llama", seed=1), character_tokenizer()), Waiting()
    first, second = [50, 51, 52], [60, 61, 60]
    asked = {"max_new_tokens": 12}
    text = decoder.generate(first, draft=False, **asked).text
    references, history, stop = [text], [text], ["never"]
    ends, words, bias = [1], [[70, 71]], {(60,): -1.0}
    own = {"references": references, "history": history, "stop": stop}
    shared = {"eos_token_id": ends, "bad_words_ids": words, "sequence_bias": bias}
    alone = decoder.generate(first, **own, **shared, **asked)
    assert alone.stats.references_used == 1
    prompt = torch.tensor(first) if kind == "tensor" else list(first)
    processors = [gate]
    future = decoder.submit(prompt, logits_processor=processors, **own, **shared, **asked)
    stream = decoder.stream(prompt, **own, **shared, **asked)
    prompt[:] = torch.tensor(second) if kind == "tensor" else second
    processors.append(lambda ids, scores: scores * 0)
    references.append("another")
    history.clear()
    stop[0] = text[1]
    ends.append(alone.token_ids[0])
    words[0][:] = alone.token_ids[:1]
    bias[60,] = bias[alone.token_ids[0],] = -100.0
    gate.open.set()
    list(stream)
    for result in (future.result(20), stream.result):
        assert (result.token_ids, result.text) == (alone.token_ids, alone.text)
        assert result.stats.references_used == 1
    assert result.copied_spans == alone.copied_spans


def test_defaults_are_what_they_were_when_the_decoder_was_made() -> None:
    stop = ["never"]
    decoder = Decoder(build("llama", seed=1), character_tokenizer(), defaults={"stop": stop})
    before = decoder.generate([50, 51], max_new_tokens=9)
    stop[0] = before.text[2]
    assert decoder.generate([50, 51], max_new_tokens=9).text == before.text


def tenants_words(tenant: int) -> list[int]:
    first = COMMON + CANARIES * tenant
    return list(range(first, first + CANARIES))


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are words: `w0`, `w1` and so on."""
    vocabulary = {f"w{number}": number for number in range(COMMON + CANARIES * TENANTS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def answering_without_canaries() -> Any:
    """Return a model in which no canary ever has a likely logit, also not as a second choice."""
    torch.manual_seed(3)
    config = PhiConfig(
        vocab_size=COMMON + CANARIES * TENANTS, hidden_size=16, intermediate_size=24,
        num_hidden_layers=1, num_attention_heads=2, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.lm_head.bias[COMMON:] = -1e4
    return model


def references_of(tenant: int, answer: str) -> list[Reference]:
    """The tenant's answer with canaries in it, so that every copy runs into one of them."""
    pieces, canaries = answer.split(), tenants_words(tenant)
    told = [
        word + (f" w{canaries[place // 5 % CANARIES]}" if place % 5 == 4 else "")
        for place, word in enumerate(pieces)
    ]
    return [Reference(" ".join(told), id=str(tenant)), Reference(answer, id=str(tenant))]


class Watch:
    """Looks at every pass of a decoder: no tenant's canary is drafted for another."""

    def __init__(self, decoder: Decoder) -> None:
        self.run, self.drafted_canaries = decoder._worker._run, 0
        decoder._worker._run = self

    def __call__(self, step: Pass) -> object:
        drafted = {token for token in step.drafted if token >= COMMON}
        if drafted:
            assert drafted <= set(tenants_words(step.row.tokens[0]))
            self.drafted_canaries += 1
        return self.run(step)


@pytest.mark.slow
def test_T32_nothing_of_one_tenant_is_drafted_or_cited_for_another() -> None:
    """Threads and an event loop at once; every pass of the model is looked at."""
    prompts = [[tenant, *range(5, 9), tenant, 30] for tenant in range(TENANTS)]
    decoder = Decoder(answering_without_canaries(), words())
    watch = Watch(decoder)
    alone = [decoder.generate(prompt, draft=False, max_new_tokens=14) for prompt in prompts]
    references = [references_of(tenant, one.text) for tenant, one in enumerate(alone)]

    def asked(tenant: int) -> dict[str, Any]:
        return {
            "prompt": prompts[tenant],
            "references": references[tenant],
            "namespace": str(tenant),
            "max_new_tokens": 14,
        }

    def check(tenant: int, result: GenerationResult) -> None:
        assert result.token_ids == alone[tenant].token_ids
        assert {span.reference_id for span in result.copied_spans} <= {str(tenant)}
        for span in result.copied_spans:
            source = references[tenant][span.reference_index].text
            copied = source[span.reference_start : span.reference_end]
            assert result.text[span.start : span.end] == copied

    async def in_a_loop() -> None:
        few = asyncio.Semaphore(TASKS)

        async def one(tenant: int) -> None:
            async with few:
                check(tenant, await decoder.agenerate(**asked(tenant)))

        await asyncio.gather(*(one(number % TENANTS) for number in range(1, REQUESTS, 2)))

    def in_a_thread(tenant: int) -> None:
        check(tenant, decoder.generate(**asked(tenant)))

    with ThreadPoolExecutor(THREADS) as pool:
        done = [pool.submit(in_a_thread, number % TENANTS) for number in range(0, REQUESTS, 2)]
        asyncio.run(in_a_loop())
        for future in done:
            future.result()
    assert watch.drafted_canaries > REQUESTS / 2, "drafted too seldom for this to mean anything"
