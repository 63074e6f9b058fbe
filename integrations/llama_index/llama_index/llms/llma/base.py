"""`LLMA`: HuggingFaceLLM's place in any engine, with answers that copy from the retrieved nodes."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts.base import BasePromptTemplate, PromptTemplate
from llama_index.core.types import BaseOutputParser, PydanticProgramMode
from llama_index.core.utils import set_global_tokenizer

from llama_index.llms.llma import options, prompts, responses
from llama_index.llms.llma.ambient import process_scope as process_wide
from llama_index.llms.llma.calls import Prepare, preparing
from llama_index.llms.llma.handler import install
from llama_index.llms.llma.loading import make_decoder, model_name_of
from llama_index.llms.llma.responses import CitationStyle
from llama_index.llms.llma.templates import TemplateLLM
from llma_rag import Decoder

_OF_PROCESS = {"callback_manager", "rate_limiter"}
"""Fields that no pickle holds."""


class LLMA(TemplateLLM):
    """LLM that copies from what was retrieved; the answer is what the model writes anyway.

    Takes HuggingFaceLLM's arguments, names and order, and the keyword-only ones below. Every call
    also takes `max_new_tokens`, `stop`, `temperature`, `seed` and the other options of
    `llma_rag.GenerationOptions`, `references` (nodes, texts), and `draft=False` for plain decoding.

    Examples:
        `pip install llama-index-llms-llma`

        ```python
        from llama_index.llms.llma import LLMA, citations_of

        llm = LLMA(model_name="Qwen/Qwen3-8B", tokenizer_name="Qwen/Qwen3-8B", max_new_tokens=256)
        response = index.as_query_engine(llm=llm).query("How is the cache rolled back?")
        for citation in citations_of(response):
            print(citation.text, citation.title)
        ```
    """

    model_name: str = Field(description="Folder or hub name of the model, or what it came from.")
    context_window: int = Field(
        default=DEFAULT_CONTEXT_WINDOW, gt=0, description="Most tokens of prompt and answer."
    )
    max_new_tokens: int = Field(
        default=DEFAULT_NUM_OUTPUTS, gt=0, description="Most tokens of an answer."
    )
    system_prompt: str = Field(default="", description="Put before every prompt, once.")
    query_wrapper_prompt: BasePromptTemplate | None = Field(
        default=None, exclude=True, description="Template around a completion's `{query_str}`."
    )
    tokenizer_name: str = Field(default="", description="Folder or hub name of the tokenizer.")
    device_map: Any = Field(default="auto", exclude=True, description="As in transformers.")
    stopping_ids: list[int] = Field(
        default_factory=list, description="Token ids that end an answer, beside the model's own."
    )
    tokenizer_outputs_to_remove: list[str] = Field(
        default_factory=list, description="Without effect: only token ids reach the model."
    )
    tokenizer_kwargs: dict[str, Any] = Field(
        default_factory=dict, exclude=True, description="For loading the tokenizer."
    )
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, exclude=True, description="For loading the model."
    )
    generate_kwargs: dict[str, Any] = Field(
        default_factory=dict, exclude=True, description="Options of every call."
    )
    is_chat_model: bool = Field(default=False, description="Whether engines call `chat`.")
    capture: Literal["auto", "off"] = Field(
        default="auto", description="Whether to find what the request retrieved."
    )
    citations: CitationStyle = Field(
        default="raw", description="`raw`: in `raw` only; `blocks`: also as CitationBlocks; `off`."
    )
    hf_compat: bool = Field(
        default=True, description="Whether prompts have HuggingFaceLLM's token ids."
    )
    process_scope: bool = Field(
        default=False,
        description="Whether nodes retrieved anywhere in this process count; one user only.",
    )
    min_citation_chars: int = Field(default=24, ge=1, description="Shortest citation.")

    _decoder: Decoder = PrivateAttr()
    _of_objects: bool = PrivateAttr()

    def __init__(
        self,
        context_window: int = DEFAULT_CONTEXT_WINDOW,
        max_new_tokens: int = DEFAULT_NUM_OUTPUTS,
        query_wrapper_prompt: str | PromptTemplate = "{query_str}",
        tokenizer_name: str | None = None,
        model_name: str | None = None,
        model: Any | None = None,
        tokenizer: Any | None = None,
        device_map: Any = "auto",
        stopping_ids: list[int] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        tokenizer_outputs_to_remove: list[str] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        is_chat_model: bool | None = False,
        callback_manager: CallbackManager | None = None,
        system_prompt: str = "",
        messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None = None,
        completion_to_prompt: Callable[[str], str] | None = None,
        pydantic_program_mode: PydanticProgramMode = PydanticProgramMode.DEFAULT,
        output_parser: BaseOutputParser | None = None,
        *,
        decoder: Decoder | None = None,
        capture: Literal["auto", "off"] = "auto",
        citations: CitationStyle = "raw",
        hf_compat: bool = True,
        process_scope: bool = False,
        min_citation_chars: int = 24,
        rate_limiter: Any | None = None,
    ) -> None:
        """Load the model, once per process for equal arguments, and begin to capture.

        `decoder` takes the place of model and tokenizer, to share one with other code.
        `rate_limiter` is llama-index-core 0.14's, which asks it before each call.

        Raises:
            ValueError: If neither `model_name` nor `model` nor `decoder` is given.
            TypeError: If `generate_kwargs` holds an unknown option.
            OSError: If the model cannot be found.
        """
        of_objects = any(given is not None for given in (decoder, model, tokenizer))
        decoder = decoder or make_decoder(
            model_name,
            tokenizer_name,
            model,
            tokenizer,
            device_map,
            model_kwargs or {},
            tokenizer_kwargs or {},
        )
        if isinstance(query_wrapper_prompt, str):
            query_wrapper_prompt = PromptTemplate(query_wrapper_prompt)
        name = model_name or model_name_of(decoder.model)
        fields: dict[str, Any] = {
            "context_window": min(context_window, decoder.context_length),
            "max_new_tokens": max_new_tokens,
            "query_wrapper_prompt": query_wrapper_prompt,
            "tokenizer_name": tokenizer_name or name,
            "model_name": name,
            "device_map": device_map,
            "stopping_ids": stopping_ids or [],
            "tokenizer_kwargs": tokenizer_kwargs or {},
            "tokenizer_outputs_to_remove": tokenizer_outputs_to_remove or [],
            "model_kwargs": model_kwargs or {},
            "generate_kwargs": options.checked(
                generate_kwargs or {}, decoder.model.generation_config
            ),
            "is_chat_model": bool(is_chat_model),
            "callback_manager": callback_manager or CallbackManager(),
            "system_prompt": system_prompt,
            "messages_to_prompt": messages_to_prompt
            or partial(prompts.chat_template, decoder.tokenizer),
            "completion_to_prompt": completion_to_prompt,
            "pydantic_program_mode": pydantic_program_mode,
            "output_parser": output_parser,
            "capture": capture,
            "citations": citations,
            "hf_compat": hf_compat,
            "process_scope": process_scope,
            "min_citation_chars": min_citation_chars,
        }
        super().__init__(**fields)
        self._decoder = decoder
        self._of_objects = of_objects
        if rate_limiter is not None:
            self.rate_limiter = rate_limiter  # core 0.13 has no such field and refuses it here
        if capture == "auto":
            install()
            process_wide.enabled |= process_scope

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments that make this LLM again, the model by its name.

        Callbacks and a rate limiter belong to the process and stay behind.

        Raises:
            TypeError: If this LLM was made from loaded objects.
        """
        if self._of_objects:
            raise TypeError(
                "An `LLMA` made from `decoder`, `model` or `tokenizer` holds loaded objects and "
                "cannot be pickled. Make it from `model_name` and `tokenizer_name`: every process "
                "then loads the model once."
            )
        state = {name: getattr(self, name) for name in self.model_fields_set - _OF_PROCESS}
        if prompts.is_chat_template(self.messages_to_prompt):
            del state["messages_to_prompt"]  # it holds the tokenizer
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make this LLM from its arguments; a model that is gone is an error here."""
        type(self).__init__(self, **state)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex lists this class."""
        return "LLMA"

    @property
    def metadata(self) -> LLMMetadata:
        """Say what prompts and programs may expect of this model."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_new_tokens,
            is_chat_model=self.is_chat_model,
            model_name=self.model_name,
        )

    @property
    def decoder(self) -> Decoder:
        """The decoder that answers; shared by every LLMA of the same model."""
        return self._decoder

    def use_as_global_tokenizer(self) -> None:
        """Let LlamaIndex measure prompts with this model's tokenizer instead of tiktoken's."""
        set_global_tokenizer(partial(prompts.encode_plainly, self._decoder.tokenizer))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Complete a prompt; `formatted` means that wrapper and system prompt are in it already."""
        return self._completion_call(prompt, formatted, kwargs)().answer()

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Complete a prompt without blocking the event loop."""
        call = await asyncio.to_thread(self._completion_call(prompt, formatted, kwargs))
        return await call.answer_async()

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Complete a prompt in chunks, one per accepted run; the last one has `raw`."""
        return self._completion_call(prompt, formatted, kwargs)().stream()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Complete a prompt in chunks without blocking the event loop."""
        call = await asyncio.to_thread(self._completion_call(prompt, formatted, kwargs))
        return call.stream_async()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._chat_call(messages, kwargs)().answer()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without blocking the event loop."""
        call = await asyncio.to_thread(self._chat_call(messages, kwargs))
        return await call.answer_async()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation in chunks, one per accepted run; the last one has `raw`."""
        return self._chat_call(messages, kwargs)().stream()

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Answer a conversation in chunks without blocking the event loop."""
        call = await asyncio.to_thread(self._chat_call(messages, kwargs))
        return call.stream_async()

    def _completion_call(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> Prepare[CompletionResponse]:
        if not formatted:
            if self.query_wrapper_prompt is not None:
                prompt = self.query_wrapper_prompt.format(query_str=prompt)
            if self.system_prompt:
                prompt = f"{self.system_prompt} {prompt}"
            if self.completion_to_prompt is not None:
                prompt = self.completion_to_prompt(prompt)
        return preparing(self, prompt, kwargs, responses.completion_response)

    def _chat_call(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> Prepare[ChatResponse]:
        messages = prompts.with_system_prompt(messages, self.system_prompt)
        assert self.messages_to_prompt is not None, "LLM's validator sets it"
        text = self.messages_to_prompt(messages)
        given = prompts.citable(messages)
        return preparing(self, text, kwargs, responses.chat_response, given)
