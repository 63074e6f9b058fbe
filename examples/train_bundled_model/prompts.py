"""The prompts a model meets in LangChain and LlamaIndex, exactly as those libraries ship them.

A format is two pieces of text: `head` holds the passages and `tail` the question, so that several
questions can share one head. Where the question comes first, the head is empty. Chat formats are
written out as the chat template renders them. The tokenizer drops white space at the end of a text,
so that a prompt ending in 'Answer: ' reads like one ending in 'Answer:'; an answer starts with a
space exactly where its sentence does in the prompt, so that every token of it can be copied.
"""

from __future__ import annotations

from dataclasses import dataclass

BOS, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- set text = message.content if message.content is string else"
    " message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{%- if message.role == 'assistant' %}"
    "{{- '<|assistant|> ' + (text | trim) + eos_token }}"
    "{%- elif message.role == 'user' %}"
    "{{- '<|user|>' + (text | trim) }}"
    "{%- else %}"
    "{{- '<|system|>' + (text | trim) }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

_UNKNOWN = "If you don't know the answer, just say that you don't know"
_STUFF = "Use the following pieces of context to answer the "
_STUFF_SYSTEM = (
    f"{_STUFF}user's question.\n{_UNKNOWN}, don't try to make up an answer.\n"
    "----------------\n{context}"
)
_RAG = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved "
    f"context to answer the question. {_UNKNOWN}. Use three sentences maximum and keep the "
    "answer concise."
)
_RAG_SYSTEM = _RAG.replace("just say", "say") + "\n\n{context}"
_ONLY = "Answer the question based only on the following context:\n{context}\n\nQuestion:"
_QA_SYSTEM = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or "
    "anything along those lines."
)
_RULE = "---------------------"
_QA = (
    f"Context information is below.\n{_RULE}\n{{context}}\n{_RULE}\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery:"
)
_SUMMARY = (
    f"Context information from multiple sources is below.\n{_RULE}\n{{context}}\n{_RULE}\n"
    "Given the information from multiple sources and not prior knowledge, answer the query.\n"
    "Query:"
)


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """One way to put passages and a question before the model.

    Attributes:
        name: Short name, used in reports.
        head: Text with `{context}`, shared by all questions about one context.
        tail: Text with `{question}`.
        share: How often training uses it, relative to the others.
    """

    name: str
    head: str
    tail: str
    share: float

    @property
    def is_chat(self) -> bool:
        """Whether the text carries the special tokens of a chat."""
        return self.tail.endswith(ASSISTANT)


def _chat(name: str, head: str, tail: str, share: float) -> PromptFormat:
    return PromptFormat(name, BOS + head, tail + ASSISTANT, share)


FORMATS = (
    _chat("langchain-stuff-chat", SYSTEM + _STUFF_SYSTEM, USER + "{question}", 6),
    _chat(
        "langchain-rag-prompt",
        "",
        f"{USER}{_RAG}\nQuestion: {{question}} \nContext: {{context}} \nAnswer:",
        1.5,
    ),
    _chat("langchain-rag-system", SYSTEM + _RAG_SYSTEM, USER + "{question}", 2),
    _chat("langchain-only-chat", USER + _ONLY, " {question}", 3),
    _chat(
        "langchain-context-system",
        SYSTEM + "You are a helpful assistant. Use the following context in your response:"
        "\n\n{context}",
        USER + "{question}",
        0.7,
    ),
    PromptFormat(
        "langchain-stuff",
        f"{_STUFF}question at the end. {_UNKNOWN}, don't try to make up an answer."
        "\n\n{context}\n\nQuestion:",
        " {question}\nHelpful Answer:",
        1.5,
    ),
    PromptFormat("langchain-only", "Human: " + _ONLY, " {question}\n", 0.7),
    PromptFormat("langchain-stuff-text", f"System: {_STUFF_SYSTEM}\nHuman:", " {question}", 0.7),
    PromptFormat("llamaindex-qa", _QA, " {question}\nAnswer: ", 6),
    PromptFormat("llamaindex-summary", _SUMMARY, " {question}\nAnswer: ", 1),
    _chat("llamaindex-qa-chat", SYSTEM + _QA_SYSTEM + USER + _QA, " {question}\nAnswer:", 3),
    _chat(
        "llamaindex-summary-chat", SYSTEM + _QA_SYSTEM + USER + _SUMMARY, " {question}\nAnswer:", 1
    ),
    _chat("plain-chat", USER + "{context}\n\nQuestion:", " {question}", 1),
    _chat("plain-context-chat", USER + "Context:\n{context}\nQuestion:", " {question}", 1),
    PromptFormat("plain", "Context:\n{context}\n\nQuestion:", " {question}\nAnswer:", 0.7),
)
