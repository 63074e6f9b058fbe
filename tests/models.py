"""Tiny models with random weights and a character tokenizer, made from configurations."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from llma_rag import Decoder

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
LETTERS = ["\u0120", *map(chr, range(33, 127))]
"""Printable ASCII as byte-level tokens, so that any answer of a random model is a text."""

VOCAB = len(SPECIAL) + len(LETTERS)

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama-gqa": LlamaConfig(**_SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**_SIZES, num_key_value_heads=1),
    "mistral": MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=12),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=512,
        bos_token_id=0, eos_token_id=1, initializer_range=0.4,
    ),
    "gemma": GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=8),
    "gemma2": Gemma2Config(**_SIZES, num_key_value_heads=2, head_dim=8, sliding_window=8),
}  # fmt: skip


@cache
def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per ASCII character and four special tokens."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
    )


@cache
def tiny_model(name: str) -> PreTrainedModel:
    """Return a model of a family with random weights, fp32, in evaluation mode."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
    return model.eval()


@cache
def tiny_decoder(name: str) -> Decoder:
    """Return a decoder of a tiny model; tests share it, as requests share a model."""
    return Decoder(tiny_model(name), character_tokenizer())


def of_generate(model: PreTrainedModel, prompt: list[int], **options: Any) -> list[int]:
    """Return the tokens that `generate` adds to a prompt."""
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=1, **options)
    return output[0, len(prompt) :].tolist()


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Return what `transformers` writes greedily."""
    return of_generate(model, prompt, max_new_tokens=count, do_sample=False)


def shared_folder() -> Path | None:
    """Return the folder with recorded answers and pretrained weights, where there is one."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("LLMA_RAG_SHARED", default))
    return folder if folder.is_dir() else None
