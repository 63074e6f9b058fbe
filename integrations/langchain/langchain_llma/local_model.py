"""Name a local model, how it is loaded and asked: what `ChatLLMA` and `LLMA` have in common."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self
from uuid import UUID

from langchain_core.messages import BaseMessage
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

import llma_rag
from langchain_llma.calls import Call
from langchain_llma.documents import Given, given_documents
from langchain_llma.held import Held, name_of
from langchain_llma.loaded import decoder_of, fields_of
from langchain_llma.options import (
    fields_of_loading,
    fields_of_pipeline,
    generation_options,
    over_pipeline,
    with_token_apart,
)
from langchain_llma.prompts import text_prompt
from langchain_llma.scopes import CapturedDocument, captured_documents, note_call
from langchain_llma.tool_calls import Tool

if TYPE_CHECKING:
    from llma_rag import Decoder, GenerationOptions

MODEL_CONFIG = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)


class LocalModel(BaseModel):
    """Fields and loading shared by the chat model and the text model.

    The weights are loaded at the first call, once per process for equal arguments. What is left
    unset here and in the call comes from the model's own `generation_config`.
    """

    model: str = Field(validation_alias=AliasChoices("model", "model_name"))
    """Path of a local model or its name on the Hugging Face hub."""
    tokenizer: str | None = None
    """Path or name of the tokenizer where it is not the model's."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: str = "auto"
    """Precision of the weights, for example `"bfloat16"`; `"auto"` takes the checkpoint's."""
    device: str | int | None = None
    """Where the model runs; by default on a GPU if there is one."""
    device_map: str | dict[str, Any] | None = None
    """Layout over several devices, as in `from_pretrained`."""
    quantization_config: Any = Field(default=None, repr=False)
    """A quantisation configuration of transformers."""
    attn_implementation: str | None = None
    """Attention backend, as in `from_pretrained`."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    hf_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("hf_token", "api_key")
    )
    """Access token for private models on the hub."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's `from_pretrained`."""
    tokenizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the tokenizer's `from_pretrained`."""

    temperature: float | None = Field(default=None, ge=0)
    """0 decodes greedily, more than 0 samples, unset follows the model's configuration."""
    top_p: float | None = None
    """Sample from the smallest set of tokens with this probability."""
    top_k: int | None = None
    """Sample from this many most probable tokens."""
    seed: int | None = None
    """Makes a sampled answer repeatable."""
    max_tokens: int | None = Field(
        default=512, validation_alias=AliasChoices("max_tokens", "max_new_tokens")
    )
    """Most tokens of the answer."""
    stop: list[str] | None = Field(
        default=None, validation_alias=AliasChoices("stop", "stop_sequences")
    )
    """Texts before which the answer ends, unless the call gives others."""
    timeout: float | None = None
    """Seconds after which an answer is cut, with finish reason `"length"`."""
    max_retries: int | None = None
    """Accepted for the sake of the standard parameters: a local call has nothing to retry."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of the decoder; see `llma_rag.GenerationOptions`."""

    draft: bool = True
    """False decodes one token per forward pass; the answer is the same."""
    capture: bool = True
    """Whether documents are noticed without being passed; see `langchain_llma.no_capture`."""
    namespace: str | None = None
    """Whose requests these are; state that outlives a request never crosses it."""
    citations: Literal["prompt", "scope", "off"] = "prompt"
    """Cite copied text of documents that stand in the prompt, of any in scope, or none."""
    min_citation_words: int = Field(default=4, ge=1)
    """Shortest copied run that is cited; 4 words, or 12 characters of a script without spaces."""

    held: Held = Field(default_factory=Held, exclude=True, repr=False)
    """The loaded model; a field, because LangChain rebuilds configured models from their fields."""

    model_config = MODEL_CONFIG

    @model_validator(mode="before")
    @classmethod
    def _token_apart(cls, given: Any) -> Any:
        return with_token_apart(given) if isinstance(given, Mapping) else given

    @field_validator("model", "tokenizer", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_by_name(cls, value: object) -> object:
        return str(value).removeprefix("torch.")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        task: str | None = None,
        backend: str = "default",
        device: int | str | None = None,
        device_map: str | dict[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        pipeline_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """Take the arguments of `from_model_id` of `HuggingFacePipeline` and `ChatHuggingFace`.

        Args:
            model_id: Path or hub name of the model.
            task: Only `"text-generation"`.
            backend: Only `"default"`, which `ChatHuggingFace` calls `"pipeline"`.
            device: GPU number, -1 for the CPU, or a device name.
            device_map: As in `from_pretrained`.
            model_kwargs: Arguments of `from_pretrained`.
            pipeline_kwargs: Options of every answer.
            batch_size: Not needed: requests of a batch meet in the decoder.
            **kwargs: Fields of this class.

        Raises:
            ValueError: For another task or backend.
        """
        for name, got, known in (
            ("task", task, (None, "text-generation")),
            ("backend", backend, ("default", "pipeline")),
        ):
            if got not in known:
                msg = f"`{name}` must be {known[-1]!r}, got {got!r}."
                raise ValueError(msg)
        taken = fields_of_loading(model_kwargs or {}) | fields_of_pipeline(pipeline_kwargs or {})
        return cls(
            model=model_id,
            device="cpu" if device == -1 else device,
            device_map=device_map,
            **over_pipeline(taken, cls._by_field(kwargs)),
        )

    @classmethod
    def from_decoder(cls, decoder: "Decoder", **fields: Any) -> Self:
        """Use a decoder that is already loaded.

        Args:
            decoder: The decoder; it stays in use as long as this object and its copies live.
            **fields: Fields of the class; `model` defaults to the name the model was loaded by.
        """
        if "model" not in fields and "model_name" not in fields:
            config = getattr(decoder.model, "config", None)
            fields["model"] = getattr(config, "name_or_path", None) or type(decoder.model).__name__
        made = cls(held=Held(decoder, given=True), **fields)
        made.held.source = made._source()
        return made

    @classmethod
    def from_huggingface(cls, loaded: Any, **fields: Any) -> Self:
        """Use the weights of a `ChatHuggingFace`, a `HuggingFacePipeline` or a pipeline.

        Nothing is loaded again; `pipeline_kwargs` and a chat model's own fields are taken over,
        where `fields` say nothing else.

        Raises:
            ValueError: If `loaded` holds no local model, for example an endpoint.
        """
        fields = over_pipeline(fields_of(loaded), cls._by_field(fields))
        return cls.from_decoder(decoder_of(loaded), **fields)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `langchain_core.load` can write and read the class: yes, without weights."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Name the environment variable from which the token is read back."""
        return {"hf_token": "HF_TOKEN"}

    def get_token_ids(self, text: str) -> list[int]:
        """Return the ids that the model's own tokenizer gives, special tokens included."""
        custom: Callable[[str], list[int]] | None = getattr(self, "custom_get_token_ids", None)
        return (
            custom(text) if custom is not None else list(self.decoder.tokenizer(text)["input_ids"])
        )

    @property
    def decoder(self) -> "Decoder":
        """The decoder; loads the model when it is first asked for."""
        held, source = self.held, self._source()
        decoder = held.decoder
        if decoder is None or held.source != source:
            decoder = llma_rag.Decoder.shared(self.model, **self._loading())
            self.held = Held(decoder, source)
        return decoder

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What traces and caches may know: what changes an answer, and no secrets."""
        told = (
            "model", "tokenizer", "revision", "dtype", "quantization_config", "model_kwargs",
            "tokenizer_kwargs", "temperature", "top_p", "top_k", "seed", "max_tokens", "stop",
            "timeout", "options", "citations", "min_citation_words",
        )  # fmt: skip
        known = {name: getattr(self, name) for name in told}
        if hasattr(self.quantization_config, "to_dict"):  # some of them show only their kind
            known["quantization_config"] = self.quantization_config.to_dict()
        if (decoder := self._given_decoder()) is not None:
            known["decoder"] = name_of(decoder)
        return {name: value for name, value in known.items() if value not in (None, {})}

    def __getstate__(self) -> dict[Any, Any]:
        """Return what a pickle holds: the model by its name.

        Raises:
            TypeError: If this model was made from loaded objects.
        """
        if self._given_decoder() is not None:
            msg = (
                f"A `{type(self).__name__}` made from a decoder or a pipeline holds loaded objects "
                "and cannot be pickled. Make it by `model=...`: every process then loads the model "
                "once."
            )
            raise TypeError(msg)
        return super().__getstate__()

    @classmethod
    def _by_field(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments under the names of fields instead of their aliases."""
        names = {
            alias: name
            for name, field in cls.model_fields.items()
            if isinstance(field.validation_alias, AliasChoices)
            for alias in field.validation_alias.choices
        }
        return {names.get(name, name): value for name, value in given.items()}

    def _given_decoder(self) -> "Decoder | None":
        """The decoder if a caller gave it, and if no copy since was told to use another model."""
        held = self.held
        return held.decoder if held.given and held.source == self._source() else None

    def _decoder_of(self, model: str) -> "Decoder":
        if model == self.model:
            return self.decoder
        return llma_rag.Decoder.shared(model, **self._loading())

    def _source(self) -> dict[str, Any]:
        """What the decoder is loaded from: a copy for another model must not use it."""
        return {"model": self.model, **self._loading()}

    def _loading(self) -> dict[str, Any]:
        """Only what is set, so that equal requests name the same decoder."""
        given = {
            "tokenizer": self.tokenizer,
            "revision": self.revision,
            "dtype": self.dtype,
            "device": self.device,
            "device_map": self.device_map,
            "quantization_config": self.quantization_config,
            "attn_implementation": self.attn_implementation,
            "trust_remote_code": self.trust_remote_code or None,
            "token": self.hf_token.get_secret_value() if self.hf_token else None,
            "model_kwargs": self.model_kwargs or None,
            "tokenizer_kwargs": self.tokenizer_kwargs or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _generation_options(
        self, stop: Sequence[str] | None, *call: Mapping[str, Any]
    ) -> "GenerationOptions":
        fields = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "timeout": self.timeout,
        }
        return generation_options({**fields, **self.options}, *call, {"stop": stop or None})

    def _documents(
        self,
        given: Given | Sequence[Given] | None,
        prompt: str,
        parent: UUID | None,
        messages: Sequence[BaseMessage] = (),
    ) -> tuple[CapturedDocument, ...]:
        """Given documents, then captured ones; must run in the caller's context."""
        captured = captured_documents(prompt, parent, messages) if self.capture else ()
        note_call(parent)
        return (*given_documents(given), *captured)

    def _call(
        self,
        prompt: str | Callable[["Decoder"], list[int]],
        documents: tuple[CapturedDocument, ...],
        stop: Sequence[str] | None,
        given: Mapping[str, Any],
        tools: tuple[Tool, ...] = (),
        forced: bool = False,
        several: bool = True,
        history: tuple[str, ...] = (),
        pipeline: Mapping[str, Any] | None = None,
    ) -> Call:
        """Put together a request from the fields and from what was given with the call."""
        options = dict(given)
        model = options.pop("model", self.model)
        decoder = self._decoder_of(model)
        return Call(
            decoder=decoder,
            model=model,
            prompt=prompt(decoder) if callable(prompt) else text_prompt(decoder.tokenizer, prompt),
            documents=documents,
            tools=tools,
            forced=forced,
            several=several,
            history=history,
            draft=options.pop("draft", self.draft),
            namespace=options.pop("namespace", self.namespace),
            options=self._generation_options(stop, pipeline or {}, options),
            citations=self.citations,
            min_citation_words=self.min_citation_words,
        )
