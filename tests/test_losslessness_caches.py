"""Rows T02, T20 and T33: precisions, caches, compiled and changed models, several devices."""

import copy
import random
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.llama.modeling_llama import LlamaMLP

from llma_rag import Decoder
from llma_rag.engine.probe import MOST_VERDICTS, _verdicts, runner_of
from llma_rag.engine.step import StepRunner
from llma_rag.engine.verdict import Verdict
from tests.driving import decode, random_chain
from tests.families import build
from tests.models import VOCAB, character_tokenizer, of_generate

PROMPT = [10, 11, 12, 10, 11]


def expected_of(model: Any, prompt: list[int] = PROMPT, **options: Any) -> list[int]:
    return of_generate(model, prompt, max_new_tokens=12, do_sample=False, **options)


def is_right(decoder: Decoder, expected: list[int]) -> None:
    """Assert that a reference speeds the expected answer up and changes nothing."""
    text = character_tokenizer().decode(expected)
    result = decoder.generate(PROMPT, references=[text], max_new_tokens=len(expected))
    assert list(result.token_ids) == expected
    assert result.stats.forward_passes < len(expected)
    plain = decoder.generate(PROMPT, draft=False, max_new_tokens=len(expected))
    assert list(plain.token_ids) == expected


LOW = [torch.bfloat16, torch.float16]
NEAR = 0.05
"""Part of the largest logit by which two that rounding can swap differ at most."""


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_neox", "mistral_window"])
def test_T02_where_low_precision_decides_otherwise_it_was_a_near_tie(family, dtype) -> None:
    runner = runner_of(build(family, "sdpa", dtype=dtype))
    drafted_passes = 0
    for seed in range(10):
        source = random.Random(seed)
        prompt = [source.randrange(4, VOCAB) for _ in range(12)]
        plain = decode(runner, prompt, 30)
        drafted = decode(runner, prompt, 30, random_chain(source, plain.tokens))
        drafted_passes += plain.passes - drafted.passes
        pairs = enumerate(zip(plain.tokens, drafted.tokens, strict=True))
        place = next((place for place, (one, other) in pairs if one != other), None)
        if place is not None:
            scores = plain.logits[place].float()
            gap = scores[plain.tokens[place]] - scores[drafted.tokens[place]]
            assert 0 <= gap <= NEAR * scores.abs().max()
    assert drafted_passes > 0


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_neox", "mistral_window"])
def test_T02_in_one_shape_low_precision_gives_the_same_tokens(family, dtype) -> None:
    """In bitwise mode where the self-test grants it, which is what users are told."""
    decoder = Decoder(
        build(family, "sdpa", dtype=dtype), character_tokenizer(), exactness="bitwise"
    )
    assert decoder.exactness == "bitwise"
    for seed in range(6):
        source = random.Random(seed)
        prompt = [source.randrange(4, VOCAB) for _ in range(12)]
        plain = decoder.generate(prompt, draft=False, max_new_tokens=30)
        broken = plain.text[:9] + "~" + plain.text[10:]
        for references in ([plain.text], [broken, plain.text[12:]]):
            result = decoder.generate(prompt, references=references, max_new_tokens=30)
            assert result.token_ids == plain.token_ids
            assert result.stats.accepted_tokens > 0


@pytest.mark.parametrize("setting", ["static", "dynamic", "offloaded"])
def test_T20_a_cache_that_the_model_asks_for_changes_no_token(setting: str) -> None:
    """A row has its own cache; `cache_implementation` of the model leads to the same tokens."""
    model = build("llama", seed=7)
    expected = expected_of(model)
    model.generation_config.cache_implementation = setting
    is_right(Decoder(model, character_tokenizer()), expected)


def test_T20_a_quantised_cache_is_refused_since_it_would_give_other_tokens() -> None:
    model = build("llama", seed=7)
    model.generation_config.cache_implementation = "quantized"
    decoder = Decoder(model, character_tokenizer())
    with pytest.raises(ValueError, match=r"`cache_implementation`='quantized'.*not supp"):
        decoder.generate(PROMPT, max_new_tokens=3)


def test_T20_a_cache_of_the_caller_is_refused() -> None:
    decoder = Decoder(build("llama", seed=7), character_tokenizer())
    with pytest.raises(TypeError, match="Unknown generation option `past_key_values`"):
        decoder.generate(PROMPT, past_key_values=object())


def test_T20_a_prompt_that_generate_feeds_in_pieces_gives_the_same_tokens() -> None:
    model = build("llama", seed=7)
    model.generation_config.prefill_chunk_size = 2
    is_right(Decoder(model, character_tokenizer()), expected_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [True, False])
def test_T20_a_compiled_model_gives_the_same_tokens(in_place: bool) -> None:
    model = build("llama", "sdpa", seed=7)
    expected = expected_of(model)
    if in_place:
        model.compile(backend="eager", dynamic=True)
    else:
        model = torch.compile(model, backend="eager", dynamic=True)
    is_right(Decoder(model, character_tokenizer()), expected)


def test_T20_use_cache_false_in_the_configuration_changes_no_token() -> None:
    model = build("llama", seed=7, use_cache=False)
    runner = runner_of(model)
    plain = decode(runner, [10, 11, 12], 12)
    assert decode(
        runner, [10, 11, 12], 12, random_chain(random.Random(0), plain.tokens)
    ).tokens == (decode(StepRunner(model, Verdict(memory="none")), [10, 11, 12], 12).tokens)


class Adapted(nn.Module):
    """A linear layer with a low-rank change that callers switch on and off, as adapters have it."""

    def __init__(self, layer: nn.Linear, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer, self.active = layer, ["default"]  # a list, as in peft
        self.down = torch.randn((2, layer.in_features), generator=generator)
        self.up = torch.randn((layer.out_features, 2), generator=generator) / 2

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = self.layer(states)
        return out + states @ self.down.T @ self.up.T if self.active else out


def adapt(model: Any) -> list[Adapted]:
    """Put adapters into a model, as an adapter library does: by exchanging modules."""
    adapters = []
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj, number)
        layer.mlp.down_proj = Adapted(layer.mlp.down_proj, number + 10)
        adapters += [layer.self_attn.q_proj, layer.mlp.down_proj]
    return adapters


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("late", [True, False])
def test_T33_adapters_count_from_the_next_request_on(attention: str, late: bool) -> None:
    """Put in before or after the decoder was made, switched off and on, taken out again."""
    model = build("llama", attention, seed=10)
    plain = expected_of(model)
    decoder = Decoder(model, character_tokenizer())
    if late:
        is_right(decoder, plain)
    adapters = adapt(model)
    if not late:
        decoder = Decoder(model, character_tokenizer())
    adapted = expected_of(model)
    assert adapted != plain
    for active in (True, False, True):
        for adapter in adapters:
            adapter.active = ["default"] if active else []
        is_right(decoder, adapted if active else plain)
    for layer in model.model.layers:
        layer.self_attn.q_proj = layer.self_attn.q_proj.layer
        layer.mlp.down_proj = layer.mlp.down_proj.layer
    is_right(decoder, plain)
    is_right(Decoder(model, character_tokenizer()), plain)


def test_T33_a_model_that_is_changed_is_decoded_as_it_is_now() -> None:
    """A larger vocabulary, another precision, an exchanged output layer."""
    model = build("llama", "sdpa", seed=10)
    decoder = Decoder(model, character_tokenizer())
    is_right(decoder, expected_of(model))
    model.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    result = decoder.generate([VOCAB + 7, 11, 12], max_new_tokens=12)
    assert list(result.token_ids) == expected_of(model, [VOCAB + 7, 11, 12])
    torch.manual_seed(0)
    model.set_output_embeddings(nn.Linear(32, VOCAB, bias=False))
    model.resize_token_embeddings(VOCAB)
    is_right(decoder, expected_of(model))
    is_right(Decoder(model, character_tokenizer()), expected_of(model))
    model.to(torch.float64)
    is_right(decoder, expected_of(model))


def test_T33_a_change_at_which_a_request_fails_counts_all_the_same() -> None:
    """The request after it must not be decoded as the model was before."""
    model = build("llama", "sdpa", seed=10)
    decoder = Decoder(model, character_tokenizer())
    is_right(decoder, expected_of(model))
    threads = threading.active_count()
    for _ in range(3):
        for layer in model.model.layers:
            layer.self_attn.v_proj = copy.deepcopy(layer.self_attn.v_proj)
            with torch.no_grad():
                layer.self_attn.v_proj.weight *= -1.5
        model.train()
        with pytest.raises(ValueError, match="training mode"):
            decoder.generate([10, 11, 12], max_new_tokens=3)
        model.eval()
        is_right(decoder, expected_of(model))
    decoder.close()
    decoder._worker._last.join()
    assert threading.active_count() < threads


def _scale_attention(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 5


def _exchange_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 0.3


def _shorten_window(model: Any) -> None:
    model.config.sliding_window = 2


def _route_to_one(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.gate.top_k = 1


def _drop_an_mlp(model: Any) -> None:
    model.model.layers[0].mlp = nn.Identity()


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", _scale_attention),
        ("llama", _exchange_buffer),
        ("llama", _drop_an_mlp),
        ("mistral_window", _shorten_window),
        ("mixtral", _route_to_one),
    ],
)
def test_T33_what_a_model_computes_with_may_be_exchanged(family: str, change: Any) -> None:
    """Seen by the decoder that there is, and by the next one."""
    model = build(family, "sdpa", seed=10)
    decoder = Decoder(model, character_tokenizer())
    before = expected_of(model)
    is_right(decoder, before)
    change(model)
    assert expected_of(model) != before
    is_right(decoder, expected_of(model))
    is_right(Decoder(model, character_tokenizer()), expected_of(model))


def test_T33_hooks_on_all_modules_and_patched_classes_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("llama", "sdpa", seed=10)
    decoder = Decoder(model, character_tokenizer())
    before = expected_of(model)
    is_right(decoder, before)
    hook = register_module_forward_hook(
        lambda module, _, output: output * -3 if isinstance(module, LlamaMLP) else None
    )
    try:
        hooked = expected_of(model)
        is_right(decoder, hooked)
    finally:
        hook.remove()
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *given: original(*given) * -3)
    assert hooked != before
    is_right(decoder, hooked)


def test_T33_a_norm_of_one_weight_is_not_read_beyond_its_end() -> None:
    """torch repeats it, and kernels must not read what lies behind it."""
    model = build("llama", "sdpa", seed=10)
    decoder = Decoder(model, character_tokenizer())
    is_right(decoder, expected_of(model))
    model.model.layers[0].input_layernorm.weight = nn.Parameter(torch.full((1,), 0.7))
    is_right(decoder, expected_of(model))


def test_T33_verdicts_of_a_model_are_bounded() -> None:
    model = build("llama", "sdpa", seed=10)
    for _ in range(MOST_VERDICTS + 2):
        hook = model.model.layers[0].register_forward_hook(lambda *_: None)
        runner_of(model)
        hook.remove()
    assert len(_verdicts[model]) == MOST_VERDICTS


def test_T33_token_ids_go_to_the_device_of_the_embedding() -> None:
    """Without a second device, the embedding is moved to `meta` and the runner asked."""
    model = build("llama", seed=8)
    runner = StepRunner(model)
    assert runner._device == model.get_input_embeddings().weight.device
    model.get_input_embeddings().to("meta")
    assert StepRunner(model)._device == torch.device("cpu"), "offloaded weights count as CPU"


def test_T33_layers_spread_by_accelerate_decode_alike() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build("llama", seed=9)
    expected = decode(runner_of(model), [10, 11, 12], 12).tokens
    spread = accelerate.cpu_offload(build("llama", seed=9), execution_device="cpu")
    runner = runner_of(spread)
    found = decode(runner, [10, 11, 12], 12, random_chain(random.Random(0), expected))
    assert found.tokens == expected
