"""Test pipelines without weights: a tiny model that says what you tell it, and a tokenizer."""

from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>")
"""Special tokens of `byte_tokenizer`, with the ids 0, 1, 2 and 3."""

BYTE_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""Tokens of `byte_tokenizer`."""

BOOST = 100.0
"""What a scripted token's logit is raised by: more than a tiny model's logits differ by."""


class ScriptedModel(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # untyped in transformers
    """A Llama with random weights whose logits are raised on a scripted continuation.

    It runs, caches and masks as any model does, so what a decoder does with copies, rejections and
    stops is exact and known beforehand. Where the script has ended, the random weights speak. A
    tensor passed as `logits_at` replaces the logits behind one token of the script.

    >>> model = ScriptedModel([5, 6, 7], vocab_size=9)
    >>> ids = torch.tensor([[1, 2]])
    >>> model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3)[0, 2:].tolist()
    [5, 6, 7]
    """

    def __init__(
        self,
        script: Sequence[int],
        *,
        vocab_size: int = BYTE_VOCABULARY,
        starts_at: int | None = None,
        boost: float = BOOST,
        logits_at: dict[int, torch.Tensor] | None = None,
        eos_token_id: int | list[int] | None = None,
        context_length: int = 2048,
        seed: int = 0,
    ) -> None:
        """Make the model; global random state stays as it is.

        Args:
            script: Token ids of the answer.
            vocab_size: Size of the vocabulary.
            starts_at: Position of the script's first token; None for the first token after the
                prompt, which is what the first pass over an empty cache holds. Say it where a
                decoder uses no cache, or drafts in its first pass as prompt lookup does.
            boost: What is added to the scripted token's logit.
            logits_at: For a token number of the script, the logits [vocab_size] to choose it from.
            eos_token_id: Tokens that end an answer; None for no such token.
            context_length: Most positions.
            seed: Fixes the random weights.
        """
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=context_length,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config)
        self.script = list(script)
        self.boost = boost
        self.logits_at = logits_at or {}
        self._starts_at = starts_at
        self._starts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self.train(False)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **arguments: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model and raise the scripted logits; arguments are `LlamaForCausalLM`'s."""
        assert inputs_embeds is None, "a script is told in token ids"
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        width = input_ids.shape[1]
        start = self._start(past_key_values, past, width)
        positions = position_ids
        if positions is None:
            positions = torch.arange(past, past + width, device=input_ids.device)[None]
        output: CausalLMOutputWithPast = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **arguments,
        )
        if past_key_values is None and output.past_key_values is not None:
            self._starts[output.past_key_values] = start
        assert output.logits is not None
        logits = output.logits.clone()
        for row in range(logits.shape[0]):
            told = positions[min(row, positions.shape[0] - 1), -logits.shape[1] :]
            for place, position in enumerate(told.tolist()):
                self._tell(logits[row, place], position + 1 - start)
        output.logits = logits
        return output

    def _start(self, cache: Any, past: int, width: int) -> int:
        """Return the position of the script's first token in the sequence of a cache."""
        if self._starts_at is not None:
            return self._starts_at
        if cache is None:
            return width
        if past == 0:
            self._starts[cache] = width
        return self._starts.get(cache, width)

    def _tell(self, logits: torch.Tensor, number: int) -> None:
        if number in self.logits_at:
            logits.copy_(self.logits_at[number])
        elif 0 <= number < len(self.script):
            logits[self.script[number]] += self.boost


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte and the `SPECIAL_TOKENS`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped in transformers
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[1],
        extra_special_tokens=list(SPECIAL_TOKENS[2:]),
    )
