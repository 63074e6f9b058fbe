"""Train the tiny model, so that it closes its JSON and calls one tool; about two CPU minutes.

LangChain's standard tests need a model that ends strings and objects; random weights write on. The
weights beside this file were made by `python -m integrations.langchain.tests.train_tiny FOLDER`.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field

from integrations.langchain.tests.tiny import tiny_model

STEPS, BATCH = 240, 8
CALL = '<tool_call>{"name": "get_weather", "arguments": {"location": "SF"}}</tool_call>'
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "hello", "friend"]
Dialogue = tuple[list[dict[str, Any]], list[dict[str, Any]], str]
"""A conversation, its tools, and the answer to it."""


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


class _Magic(BaseModel):
    input: int = Field(..., gt=-1000, lt=1000)


@tool(args_schema=_Magic)
def magic_function(_input: int) -> int:
    """Apply a magic function to an input."""
    return _input + 2


@tool
def unicode_customer(customer_name: str, description: str) -> str:
    """Tool for creating a customer with Unicode name.

    Args:
        customer_name: The customer's name in their native language.
        description: Description of the customer.

    Returns:
        A confirmation message about the customer creation.

    """
    return customer_name


def _weather() -> list[Dialogue]:
    """The two turns of the standard tests' agent."""
    tools = [convert_to_openai_tool(get_weather)]
    question = {"role": "user", "content": "What is the weather in San Francisco, CA?"}
    function = {"name": "get_weather", "arguments": {"location": "SF"}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    result = {"role": "tool", "content": "It's sunny."}
    return [([question], tools, CALL), ([question, call, result], tools, "my friend")]


def _forced() -> list[Dialogue]:
    """Calls that the standard tests force and whose arguments they look at."""
    told = []
    for function, question, arguments in (
        (magic_function, "What is the value of magic_function(3)? Use the tool.", {"input": 3}),
        (
            unicode_customer,
            "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company",
            {"customer_name": "你好", "description": "fox"},
        ),
    ):
        answer = json.dumps({"name": function.name, "arguments": arguments}, ensure_ascii=False)
        tools = [convert_to_openai_tool(function)]
        told.append(([{"role": "user", "content": question}], tools, answer))
    return told


def _object(draw: random.Random) -> Dialogue:
    """Any question, answered with a short object."""
    question = {"role": "user", "content": " ".join(draw.choices(WORDS, k=draw.randint(1, 20)))}
    answer: dict[str, Any] = {
        draw.choice(WORDS): draw.choice([draw.choice(WORDS), draw.randint(0, 99), None, True])
        for _ in range(draw.randint(1, 3))
    }
    if draw.random() < 0.5:
        answer = {"name": draw.choice(WORDS), "arguments": answer}
    return [question], [], json.dumps(answer)


def _encoded(tokenizer: Any, dialogue: Dialogue) -> tuple[list[int], int]:
    conversation, tools, answer = dialogue
    prompt = tokenizer.apply_chat_template(
        conversation,
        tools=tools or None,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    reply = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *reply, tokenizer.eos_token_id], len(prompt)


def train(folder: Path) -> None:
    """Train, and save in a folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, STEPS)
    draw = random.Random(0)
    for _ in range(STEPS):
        rows = [*_weather(), *_forced(), *(_object(draw) for _ in range(BATCH - 4))]
        encoded = [_encoded(tokenizer, row) for row in rows]
        longest = max(len(ids) for ids, _ in encoded)
        inputs = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), -100)
        for row, (ids, start) in enumerate(encoded):
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, start : len(ids)] = inputs[row, start : len(ids)]
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval().to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
