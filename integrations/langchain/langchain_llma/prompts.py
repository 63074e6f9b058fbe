"""Write a conversation as the token ids of a model's chat template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_llma.tool_calls import Tool
from llma_rag import written_by_template

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
_SILENT = {
    "tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "thinking",
    "reasoning", "redacted_thinking", "non_standard",
}  # fmt: skip
"""Blocks that say nothing to the model again: calls are passed apart, old thoughts are dropped."""

_TOOLS_IN_WORDS = (
    "You may call one of these tools. To call one, answer with nothing but "
    '<tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>.\n{tools}'
)


@dataclass(frozen=True, slots=True)
class Template:
    """How conversations are written.

    Attributes:
        text: A Jinja template instead of the tokenizer's.
        variables: Variables of the template beside the conversation and the tools.
    """

    text: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def knows_tools(template: object) -> bool:
    """Whether a chat template shows tools to the model; several templates count as one."""
    return "tools" in str(template or "")


def prompt_text(messages: Sequence[BaseMessage]) -> str:
    """Return all text of a conversation, as the place to look for documents."""
    return "\n".join(_text(message) for message in messages)


def text_prompt(tokenizer: Any, text: str) -> str | list[int]:
    """Return the prompt of a completion; a text that begins with the begin token gets no second."""
    begin = getattr(tokenizer, "bos_token", None)
    if not begin or not text.startswith(begin):
        return text
    ids = list(tokenizer(text)["input_ids"])
    return ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 else ids


def earlier_turns(messages: Sequence[BaseMessage]) -> tuple[str, ...]:
    """Return the texts before the last message if an answer is among them, else none.

    Templates drop or shorten earlier turns; the decoder leaves out those that the prompt holds.
    """
    earlier = messages[:-1]
    answered = any(isinstance(message, AIMessage) for message in earlier)
    return tuple(filter(None, map(_text, earlier))) if answered else ()


def prompt_ids(
    tokenizer: Any,
    messages: Sequence[BaseMessage],
    tools: Sequence[Tool],
    template: Template,
) -> list[int]:
    """Tokenise a conversation with the model's chat template, special tokens exactly once.

    An assistant message at the end is continued. Where the template knows no tools, they are
    described in the system message, or where there is none in front of the first question: some
    templates refuse system messages. Several of them are joined where the template refuses that.

    Raises:
        ValueError: If the model has no chat template, or a message holds more than text.
    """
    text = template.text or getattr(tokenizer, "chat_template", None)
    if not text:
        msg = (
            "The tokenizer has no chat template, so a conversation cannot be written as a prompt. "
            "Pass `chat_template=`, or use `LLMA` for plain text completion."
        )
        raise ValueError(msg)
    conversation = chat_messages(messages)
    shown = knows_tools(text)
    if tools and not shown:
        conversation = _with_tools_in_words(conversation, tools)
    last = conversation[-1] if conversation else {}
    continues = last.get("role") == "assistant" and "tool_calls" not in last
    write = partial(
        tokenizer.apply_chat_template,
        tools=list(tools) if tools and shown else None,
        chat_template=template.text,
        tokenize=True,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        return_dict=True,
        **template.variables,
    )
    return list(written_by_template(write, conversation)["input_ids"])


def chat_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages as the mappings that chat templates read.

    Raises:
        ValueError: If a message holds a block that is not text.
    """
    names: dict[str | None, str] = {}
    conversation = []
    for message in messages:
        entry: dict[str, Any] = {"role": _role(message), "content": _text(message)}
        if isinstance(message, AIMessage) and message.tool_calls:
            names |= {call["id"]: call["name"] for call in message.tool_calls}
            entry["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        if isinstance(message, ToolMessage):
            entry["tool_call_id"] = message.tool_call_id
        name = message.name or names.get(getattr(message, "tool_call_id", None))
        conversation.append(entry | ({"name": name} if name else {}))
    return conversation


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    msg = f"A message of type `{message.type}` has no role in a conversation; leave it out."
    raise ValueError(msg)


def _text(message: BaseMessage) -> str:
    """Return a message's text; halves of characters, which no tokenizer takes, are replaced."""
    return _raw_text(message).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _raw_text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = [_block_text(block) for block in message.content]
    between = "" if isinstance(message, AIMessage) else "\n"
    return between.join(part for part in parts if part is not None)


def _block_text(block: str | dict[str, Any]) -> str | None:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind == "text":
        return str(block["text"])
    if kind in _SILENT:
        return None
    if kind == "json" or "json" in block:
        return json.dumps(block["json"], ensure_ascii=False)
    msg = (
        f"A message must hold text only, got a block of type `{kind}`. "
        "Describe it in words, or use a model class for that kind of input."
    )
    raise ValueError(msg)


def _with_tools_in_words(
    conversation: list[dict[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    words = _TOOLS_IN_WORDS.format(tools="\n".join(json.dumps(tool) for tool in tools))
    roles = [turn["role"] for turn in conversation]
    if "system" not in roles and "user" not in roles:
        return [{"role": "system", "content": words}, *conversation]
    place = roles.index("system" if "system" in roles else "user")
    parts = [conversation[place]["content"], words]
    told = "\n\n".join(parts if "system" in roles else reversed(parts))
    changed = conversation[place] | {"content": told}
    return [*conversation[:place], changed, *conversation[place + 1 :]]
