"""LLMs without a model that note what a call could copy from, and indexes to ask them about."""

import asyncio
import hashlib
import re
from typing import Any, NamedTuple

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.schema import TextNode

from llama_index.llms.llma.capture import find_references
from llama_index.llms.llma.captured import CapturedNode
from llama_index.llms.llma.carry import carried
from llama_index.llms.llma.handler import install


class Call(NamedTuple):
    prompt: str
    nodes: tuple[CapturedNode, ...]
    reach: str

    @property
    def seen(self):
        return {node.id for node in self.nodes}


QUESTIONS = (
    '```json\n{"items": [{"sub_question": "alpha topic zero", "tool_name": "t0"}, '
    '{"sub_question": "beta topic one", "tool_name": "t1"}]}\n```'
)
TOOL_CALL = (
    'Thought: I need to use a tool.\nAction: qe\nAction Input: {"input": "alpha topic zero"}'
)
TOOL_DONE = "Thought: I can answer without using any more tools.\nAnswer: done"
ANSWER = "The answer is copied text from the context."


def scripted(prompt, judgements):
    """What a model would say to the framework's own prompts; the first judgement is NO."""
    lower = prompt.lower()
    if "sub_question" in lower or ("sub question" in lower and "tool_name" in prompt):
        return QUESTIONS
    if "choices is given below" in prompt or "Some choices are given" in prompt:
        return '[{"choice": 1, "reason": "r"}]'
    if "generates multiple search queries" in prompt:
        return "alpha beta\ngamma delta"
    if "YES or NO" in prompt or "answer YES" in prompt:
        judgements.append(prompt)
        return "NO" if len(judgements) == 1 else "YES"
    if "JSON schema" in prompt:
        return '{"answer": "copied"}'
    if "Search API" in prompt:
        return "alpha is [Search(alpha topic zero)]"
    if "Thought:" in prompt and "Action Input" in prompt:
        conversation = prompt.rpartition("Current Conversation")[2]
        return TOOL_DONE if "Observation:" in conversation else TOOL_CALL
    return ANSWER


class ProbeLLM(CustomLLM):
    chatty: bool = False
    window: int = 4096
    process_scope: bool = False
    _calls: list[Call] = PrivateAttr(default_factory=list)
    _judgements: list[str] = PrivateAttr(default_factory=list)

    def __init__(self, **data: Any):
        super().__init__(**data)
        install()

    @property
    def calls(self):
        return self._calls

    @property
    def metadata(self):
        return LLMMetadata(
            context_window=self.window,
            num_output=64,
            is_chat_model=self.chatty,
            model_name="probe",
        )

    def note(self, prompt):
        found = find_references(prompt, process=self.process_scope)
        self._calls.append(Call(prompt, found.nodes, found.reach))

    def answer(self, prompt):
        self.note(prompt)
        return scripted(prompt, self._judgements)

    def apredict(self, prompt: Any, **prompt_args: Any) -> Any:
        return carried(super().apredict(prompt, **prompt_args))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return CompletionResponse(text=self.answer(prompt))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        words = self.answer(prompt).split(" ")

        def read():
            self.note(prompt)
            text = ""
            for word in words:
                text += word + " "
                yield CompletionResponse(text=text, delta=word + " ")

        return read()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        text = self.answer(prompt)
        await asyncio.sleep(0)
        return CompletionResponse(text=text)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        words = self.answer(prompt).split(" ")

        async def read():
            self.note(prompt)
            text = ""
            for word in words:
                await asyncio.sleep(0)
                text += word + " "
                yield CompletionResponse(text=text, delta=word + " ")

        return read()

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> Any:
        response = await self.acomplete(self.messages_to_prompt(messages), formatted=True)
        return ChatResponse(message=ChatMessage(role="assistant", content=response.text))

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        source = await self.astream_complete(self.messages_to_prompt(messages), formatted=True)

        async def read():
            async for chunk in source:
                message = ChatMessage(role="assistant", content=chunk.text)
                yield ChatResponse(message=message, delta=chunk.delta)

        return read()


class FailingLLM(ProbeLLM):
    def complete(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("The model failed.")


class ProbeFunctionLLM(FunctionCallingLLM):
    """Calls the first tool once, then answers."""

    _calls: list[Call] = PrivateAttr(default_factory=list)

    def __init__(self, **data: Any):
        super().__init__(**data)
        install()

    @property
    def calls(self):
        return self._calls

    @property
    def metadata(self):
        return LLMMetadata(
            is_chat_model=True, is_function_calling_model=True, model_name="probe-function"
        )

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, **kwargs: Any
    ) -> Any:
        messages = list(chat_history or [])
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role="user", content=user_msg)
        if user_msg:
            messages.append(user_msg)
        return {"messages": messages, "tools": [tool.metadata.name for tool in tools]}

    def get_tool_calls_from_response(
        self, response: Any, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> Any:
        return [
            ToolSelection(tool_id="c1", tool_name=name, tool_kwargs={"input": question})
            for name, question in response.message.additional_kwargs.get("probe_calls", [])
        ]

    def answer(self, messages, tools):
        prompt = "\n".join(str(message.content) for message in messages)
        found = find_references(prompt)
        self._calls.append(Call(prompt, found.nodes, found.reach))
        message = ChatMessage(role="assistant", content="final answer")
        if tools and not any(message.role == MessageRole.TOOL for message in messages):
            question = [m for m in messages if m.role == MessageRole.USER][-1].content
            message = ChatMessage(role="assistant", content="")
            message.additional_kwargs["probe_calls"] = [(tools[0], question)]
        return ChatResponse(message=message, delta="")

    @llm_chat_callback()
    def chat(self, messages: Any, tools: Any = None, **kwargs: Any) -> Any:
        return self.answer(messages, tools)

    @llm_chat_callback()
    async def achat(self, messages: Any, tools: Any = None, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return self.answer(messages, tools)

    @llm_chat_callback()
    def stream_chat(self, messages: Any, tools: Any = None, **kwargs: Any) -> Any:
        def read():
            yield self.answer(messages, tools)

        return read()

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, tools: Any = None, **kwargs: Any) -> Any:
        async def read():
            await asyncio.sleep(0)
            yield self.answer(messages, tools)

        return read()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


class HashEmbedding(BaseEmbedding):
    """Bag of hashed words: no weights, the same vectors everywhere."""

    dimension: int = 64

    def embed(self, text):
        vector = np.zeros(self.dimension)
        for word in re.findall(r"\w+", text.lower()):
            digest = int(hashlib.md5(word.encode()).hexdigest(), 16)
            vector[digest % self.dimension] += 1.0 if (digest >> 64) & 1 else -1.0
        norm = np.linalg.norm(vector)
        return (vector / norm if norm else vector + 0.125).tolist()

    def _get_query_embedding(self, query: str) -> Any:
        return self.embed(query)

    async def _aget_query_embedding(self, query: str) -> Any:
        return self.embed(query)

    def _get_text_embedding(self, text: str) -> Any:
        return self.embed(text)


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def corpus(tag="", size=10, length=40):
    """Nodes `{tag}n{i}`, each about one word of `WORDS` and its number."""
    nodes = []
    for i in range(size):
        facts = " ".join(f"{tag}fact{i}w{j}" for j in range(length))
        text = f"{tag} {WORDS[i % 10]} topic {NUMBERS[i % 10]} {facts}."
        nodes.append(TextNode(text=text, id_=f"{tag}n{i}", metadata={"file": f"{tag}doc{i}.txt"}))
    return nodes


def make_index(tag="", size=10, length=40):
    return VectorStoreIndex(corpus(tag, size, length), embed_model=HashEmbedding())


def make_faiss_index():
    import faiss
    from llama_index.vector_stores.faiss import FaissVectorStore

    store = FaissVectorStore(faiss_index=faiss.IndexFlatIP(64))
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(corpus(), storage_context=context, embed_model=HashEmbedding())


def ids(nodes):
    return {node.node.node_id for node in nodes}


def drain(response):
    return "".join(response.response_gen)


async def adrain(response):
    return "".join([text async for text in response.async_response_gen()])


async def read(engine, question):
    """Ask an engine and read its answer, streamed or not."""
    response = await engine.aquery(question)
    return await adrain(response) if hasattr(response, "async_response_gen") else str(response)
