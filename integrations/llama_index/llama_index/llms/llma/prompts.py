"""Turn completions and messages into the text and the token ids of a prompt."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_template
from llama_index.core.base.llms.types import ChatMessage, CitableBlock, MessageRole, TextBlock

from llma_rag import Reference, written_by_template

_logger = logging.getLogger(__name__)
_warned: set[str] = set()

_SILENT = {"citation", "thinking", "tool_call", "cache"}
"""Blocks that say nothing to the model again; calls are passed apart where a template knows them.

Their classes are not in every llama-index-core 0.13.
"""


def with_system_prompt(messages: Sequence[ChatMessage], system_prompt: str) -> list[ChatMessage]:
    """Put the system prompt before the messages, once.

    It joins a system message that is there already: many templates refuse two of them. Messages
    that begin with it, as `LLM.predict` makes them, stay as they are.
    """
    if not system_prompt:
        return list(messages)
    first = messages[0] if messages and messages[0].role == MessageRole.SYSTEM else None
    if first is None:
        return [ChatMessage(role=MessageRole.SYSTEM, content=system_prompt), *messages]
    if (first.content or "").startswith(system_prompt):
        return list(messages)
    joined = [TextBlock(text=f"{system_prompt}\n"), *first.blocks]
    return [ChatMessage(role=MessageRole.SYSTEM, blocks=joined), *messages[1:]]


def text_of_message(message: ChatMessage) -> str:
    """Return a message's text, that of its citable blocks included.

    Citations, thinking and extra arguments never enter a prompt.

    Raises:
        TypeError: If it holds something that is not text. Engines hide a ValueError.
    """
    return _joined(message.blocks)


def _joined(blocks: Iterable[Any]) -> str:
    return "\n".join(filter(None, map(_text_of_block, blocks)))


def _text_of_block(block: Any) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, CitableBlock):
        return _joined(block.content)
    if block.block_type in _SILENT:
        return ""
    raise TypeError(
        f"A message must hold text only, got a block of type `{block.block_type}`. Describe it in "
        "words, or use an LLM class for that kind of input."
    )


def chat_template(tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """Return the prompt of the tokenizer's chat template, or the generic one where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return generic_template([_plain(message) for message in messages])
    return rendered(tokenizer, messages, _turns)


def rendered(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    turns: Callable[[Sequence[ChatMessage]], list[dict[str, Any]]],
    tools: Sequence[dict[str, Any]] | None = None,
) -> str:
    """Return what the tokenizer's chat template makes of messages.

    Several system messages, as `LLM.predict` makes them of a system prompt and a template's own,
    stay apart as in HuggingFaceLLM, unless the template refuses them.

    Args:
        tokenizer: Has a chat template.
        messages: The conversation.
        turns: Writes messages in the form that the template takes.
        tools: What the model may call, in OpenAI's format.

    Raises:
        jinja2.TemplateError: If the template refuses the messages.
    """
    write = partial(
        tokenizer.apply_chat_template, tools=tools, tokenize=False, add_generation_prompt=True
    )
    return str(written_by_template(write, turns(messages)))


def _turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [
        {"role": message.role.value, "content": text_of_message(message)} for message in messages
    ]


def is_chat_template(function: object) -> bool:
    """Whether a function that writes prompts is `chat_template` with a tokenizer."""
    return isinstance(function, partial) and function.func is chat_template


def _plain(message: ChatMessage) -> ChatMessage:
    """Return a message that holds its text as one block."""
    return message.model_copy(update={"blocks": [TextBlock(text=text_of_message(message))]})


def encode(tokenizer: Any, text: str, *, hf_compat: bool) -> list[int]:
    """Return the token ids of a prompt.

    A template may have written the token that begins a text; HuggingFaceLLM's prompts then begin
    with two of them, and so do these with `hf_compat`. Halves of characters are replaced.
    """
    text = _encodable(text)
    begin = tokenizer.bos_token
    begun = bool(begin) and text.startswith(begin)
    ids = list(tokenizer(text, add_special_tokens=hf_compat or not begun)["input_ids"])
    if begun and ids[:2] == [tokenizer.bos_token_id] * 2:
        _warn_of_two(str(tokenizer.name_or_path))
    return ids


def encode_plainly(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without special tokens, to measure it."""
    return list(tokenizer(_encodable(text), add_special_tokens=False)["input_ids"])


def _encodable(text: str) -> str:
    """Return a text without halves of characters, which broken documents hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def citable(messages: Sequence[ChatMessage]) -> list[Reference]:
    """Return the texts of the messages' citable blocks: the caller named them as sources."""
    return [
        Reference(content.text, id=block.source)
        for message in messages
        for block in message.blocks
        if isinstance(block, CitableBlock)
        for content in block.content
        if isinstance(content, TextBlock)
    ]


def _warn_of_two(name: str) -> None:
    if name not in _warned:
        _warned.add(name)
        _logger.warning(
            "Prompts for `%s` begin with two beginning-of-text tokens, as HuggingFaceLLM writes "
            "them; pass `hf_compat=False` for one.",
            name,
        )
