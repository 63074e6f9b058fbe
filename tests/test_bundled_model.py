import json
from pathlib import Path

import pytest
import torch
from langchain_core.messages import BaseMessage
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.train_bundled_model.batches import make_batch
from examples.train_bundled_model.examples import Example
from examples.train_bundled_model.prompts import CHAT_TEMPLATE, FORMATS, SPECIAL_TOKENS

MODEL = Path(__file__).parents[1] / "llma_rag" / "demo" / "model"
ROLES = {"human": "user", "system": "system", "ai": "assistant"}


def rendered(messages: list[BaseMessage]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    turns = [{"role": ROLES[m.type], "content": m.content} for m in messages]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def trained(name: str) -> str:
    [prompt] = [item for item in FORMATS if item.name == name]
    return (prompt.head + prompt.tail).format(context="First.\n\nSecond.", question="What?")


def test_the_shipped_files_are_small_and_complete() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert names >= {
        "MODEL_CARD.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 16 * 2**20
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_shipped_chat_template_is_the_trained_one() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]


def test_the_chat_template_renders_every_role() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    turns = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "tool", "content": "found"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    expected = "<|bos|><|system|>Be brief.<|user|>Hi<|assistant|> Yes.<|end|><|system|>found"
    assert text == expected


def test_langchain_prompts_are_trained_as_shipped() -> None:
    prompts = pytest.importorskip("langchain_classic.chains.question_answering.stuff_prompt")
    filled = {"context": "First.\n\nSecond.", "question": "What?"}
    chat = rendered(prompts.CHAT_PROMPT.format_messages(**filled))
    assert trained("langchain-stuff-chat") == chat
    assert trained("langchain-stuff") == prompts.PROMPT.format(**filled)


def test_llama_index_prompts_are_trained_as_shipped() -> None:
    shipped = pytest.importorskip("llama_index.core.prompts.default_prompts")
    chat = pytest.importorskip("llama_index.core.prompts.chat_prompts")
    filled = {"context_str": "First.\n\nSecond.", "query_str": "What?"}
    assert trained("llamaindex-qa") == shipped.DEFAULT_TEXT_QA_PROMPT.format(**filled)
    assert trained("llamaindex-summary") == shipped.DEFAULT_TREE_SUMMARIZE_PROMPT.format(**filled)
    messages = [
        {"role": message.role.value, "content": message.content}
        for message in chat.CHAT_TEXT_QA_PROMPT.format_messages(**filled)
    ]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert trained("llamaindex-qa-chat") == text


def test_turns_of_a_training_example_do_not_see_one_another() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).eval()
    example = Example([0, 7, 8, 9], [([10, 4], [11, 12, 1]), ([13, 4], [14, 1])], "test")
    batch = make_batch([example])
    together = model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions
    ).logits[0]
    start = len(example.head)
    for number, (tail, answer) in enumerate(example.turns, start=1):
        alone = model(input_ids=torch.tensor([example.head + tail + answer])).logits[0]
        stop = start + len(tail) + len(answer)
        assert torch.allclose(together[start:stop], alone[len(example.head) :], atol=1e-5)
        assert batch.targets[0][batch.turns[0] == number].tolist() == answer
        start = stop
