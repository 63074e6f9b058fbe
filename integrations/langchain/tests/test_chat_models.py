"""`ChatLLMA` over a scripted decoder: prompts, messages, streams, structured output, dumps."""

import copy
import json
import pickle
import warnings
from importlib.metadata import version
from typing import Any, TypedDict
from uuid import uuid4

import pytest
from jinja2 import TemplateError
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps, load
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langchain_core.tracers import BaseTracer
from pydantic import BaseModel

import llma_rag
from integrations.langchain.tests.probes import ProbeDecoder, UserRetriever, chat
from integrations.langchain.tests.tiny import TEMPLATE
from langchain_llma import LLMA, ChatLLMA
from langchain_llma.prompts import Template, prompt_ids
from llma_rag import Reference
from llma_rag.testing import ScriptedModel, byte_tokenizer

CORE = tuple(int(part) for part in version("langchain-core").split(".")[:2])


@tool
def search(query: str) -> str:
    """Search."""
    return query


CALL = '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>'


def _aggregate(chunks: Any) -> Any:
    chunks = list(chunks)
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


async def _collected(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


def test_invoke_says_what_it_cost(decoder: ProbeDecoder) -> None:
    message = chat(decoder).invoke("hello")
    assert message.content == "the answer is ok"
    metadata = message.response_metadata
    assert metadata["model_name"] == "probe"
    assert metadata["model_provider"] == "llma"
    assert metadata["finish_reason"] == "stop"
    assert metadata["llma"]["tokens_per_forward"] == 2.0
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 4
    assert message.usage_metadata["output_token_details"] == {
        "accepted_prediction_tokens": 2,
        "rejected_prediction_tokens": 1,
    }


async def test_all_ways_give_one_answer(decoder: ProbeDecoder) -> None:
    decoder.script = "  the answer\n\nis ok "
    llm = chat(decoder)
    messages = [
        llm.invoke("hello"),
        await llm.ainvoke("hello"),
        _aggregate(llm.stream("hello")),
        _aggregate(await _collected(llm.astream("hello"))),
        llm.batch(["hello"])[0],
        (await llm.abatch(["hello"]))[0],
        chat(decoder, streaming=True).invoke("hello"),
    ]
    entries = [request.entry for request in decoder.requests]
    assert entries == [
        "generate",
        "agenerate",
        "stream",
        "astream",
        "generate",
        "agenerate",
        "stream",
    ]
    first = messages[0]
    for message in messages:
        assert message.content == decoder.script
        assert message.usage_metadata == first.usage_metadata
        assert message.response_metadata == first.response_metadata
    assert all(stream.closed for stream in decoder.streams)


def test_metadata_stands_in_the_last_chunk_only(decoder: ProbeDecoder) -> None:
    *middle, last = list(chat(decoder).stream("hello"))
    assert all(chunk.response_metadata == {"model_provider": "llma"} for chunk in middle)
    assert all(chunk.usage_metadata is None for chunk in middle)
    assert last.chunk_position == "last"
    assert last.usage_metadata is not None


def test_given_references_come_first(decoder: ProbeDecoder) -> None:
    given = [Document("one", metadata={"m": "D"}), Reference("two", metadata={"m": "R"}), "three"]
    for references in (given, given[0]):
        chat(decoder).bind(references=references).invoke("hello")
    (request, single) = decoder.requests
    assert [reference.text for reference in request.references] == ["one", "two", "three"]
    assert [reference.text for reference in single.references] == ["one"]
    llm = chat(decoder)
    (UserRetriever() | (lambda found: llm.invoke(found[0].page_content, references="mine"))).invoke(
        "u1"
    )
    assert decoder.requests[-1].references[0].text == "mine"
    assert len(decoder.requests[-1].references) == 3
    with pytest.raises(TypeError, match="`references` must hold documents"):
        llm.invoke("hello", references=[3])


def test_conversations_reach_the_template(decoder: ProbeDecoder) -> None:
    chat(decoder).invoke(
        [
            SystemMessage("be brief"),
            HumanMessage([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            AIMessage("", tool_calls=[{"name": "search", "args": {"query": "x"}, "id": "1"}]),
            ToolMessage([{"type": "text", "text": "found"}], tool_call_id="1"),
        ]
    )
    conversation, tools, options = decoder.tokenizer.last
    assert tools is None
    assert options["add_generation_prompt"]
    assert not options["continue_final_message"]
    function = {"name": "search", "arguments": {"query": "x"}}
    calls = [{"type": "function", "id": "1", "function": function}]
    assert conversation == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "found", "tool_call_id": "1", "name": "search"},
    ]


def test_an_answer_that_was_begun_is_continued(decoder: ProbeDecoder) -> None:
    chat(decoder).invoke([HumanMessage("a"), AIMessage("It is")])
    options = decoder.tokenizer.last[2]
    assert options["continue_final_message"]
    assert not options["add_generation_prompt"]


def test_images_are_refused(decoder: ProbeDecoder) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(ValueError, match="must hold text only, got a block of type `image_url`"):
        chat(decoder).invoke([HumanMessage([image])])


def test_a_model_without_a_chat_template_is_refused(decoder: ProbeDecoder) -> None:
    decoder.tokenizer.chat_template = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="no chat template"):
        chat(decoder).invoke("hello")
    chat(decoder, chat_template="{{ messages }}").invoke("hello")


def test_variables_reach_the_template(decoder: ProbeDecoder) -> None:
    """As models need it whose template switches their thinking on or off."""
    llm = chat(decoder, chat_template_kwargs={"enable_thinking": False, "date": "today"})
    llm.invoke("hello")
    assert decoder.tokenizer.last[2]["enable_thinking"] is False
    llm.invoke("hello", chat_template_kwargs={"enable_thinking": True})
    options = decoder.tokenizer.last[2]
    assert (options["enable_thinking"], options["date"]) == (True, "today")
    assert "chat_template_kwargs" not in decoder.requests[-1].options


def test_bound_tools_reach_the_template(decoder: ProbeDecoder) -> None:
    chat(decoder).bind_tools([search]).invoke("hello")
    assert decoder.tokenizer.last[1][0]["function"]["name"] == "search"
    assert "json_schema" not in decoder.requests[0].options
    chat(decoder).bind_tools([search], tool_choice="none").invoke("hello")
    assert decoder.tokenizer.last[1] is None


def test_tools_are_told_in_words_where_the_template_knows_none(decoder: ProbeDecoder) -> None:
    decoder.tokenizer.chat_template = "{{ messages }}"
    chat(decoder).bind_tools([search]).invoke([SystemMessage("be brief"), HumanMessage("hello")])
    conversation, tools, _ = decoder.tokenizer.last
    assert tools is None
    assert conversation[0]["content"].startswith("be brief\n\nYou may call")
    assert '"name": "search"' in conversation[0]["content"]


def test_tools_are_told_before_the_question_where_nobody_speaks_as_the_system(
    decoder: ProbeDecoder,
) -> None:
    """Templates like Gemma's refuse a system message."""
    decoder.tokenizer.chat_template = "{{ messages }}"
    turns = [AIMessage("hi"), HumanMessage("hello"), AIMessage("yes?"), HumanMessage("now")]
    chat(decoder).bind_tools([search]).invoke(turns)
    conversation, _, _ = decoder.tokenizer.last
    assert [turn["role"] for turn in conversation] == ["assistant", "user", "assistant", "user"]
    assert conversation[1]["content"].startswith("You may call")
    assert conversation[1]["content"].endswith("\n\nhello")
    chat(decoder).bind_tools([search]).invoke([AIMessage("hi")])
    assert decoder.tokenizer.last[0][0]["role"] == "system"


def test_classes_are_bound_as_what_they_describe(decoder: ProbeDecoder) -> None:
    class Answer(BaseModel):
        """An answer."""

        size: int

    chat(decoder).bind(tools=[Answer]).invoke("hello")
    assert decoder.tokenizer.last[1][0]["function"]["name"] == "Answer"
    chat(decoder).bind(response_format=Answer).invoke("hello")
    assert decoder.requests[1].options["json_schema"]["properties"]["size"]["type"] == "integer"


def test_half_a_character_is_replaced(decoder: ProbeDecoder) -> None:
    chat(decoder).invoke([HumanMessage("bad \ud83d, good \ud83d\ude00")])
    assert decoder.tokenizer.last[0][0]["content"] == "bad \ufffd, good \U0001f600"


async def test_tool_calls_are_read_in_every_mode(decoder: ProbeDecoder) -> None:
    decoder.script = f"Let me look. {CALL}"
    llm = chat(decoder).bind_tools([search])
    for message in (
        llm.invoke("hello"),
        await llm.ainvoke("hello"),
        _aggregate(llm.stream("hello")),
        _aggregate(await _collected(llm.astream("hello"))),
    ):
        assert message.content == "Let me look."
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [
            ("search", {"query": "x"})
        ]
        assert message.response_metadata["finish_reason"] == "tool_calls"
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["text", "tool_call"]


def test_broken_tool_calls_are_invalid_in_every_mode(decoder: ProbeDecoder) -> None:
    decoder.script = "<tool_call>{broken</tool_call>"
    llm = chat(decoder).bind_tools([search])
    for message in (llm.invoke("hello"), _aggregate(llm.stream("hello"))):
        assert not message.tool_calls
        assert "{broken" in (message.invalid_tool_calls[0]["args"] or "")


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_a_forced_call_that_was_cut_is_invalid(decoder: ProbeDecoder, reason: Any) -> None:
    """And no answer to the user, as a free one is none."""
    decoder.script, decoder.finish_reason = '{"name": "search", "arguments": {"que', reason
    llm = chat(decoder).bind_tools([search], tool_choice="search")
    message = llm.invoke("hello")
    assert (message.content, message.tool_calls) == ("", [])
    (cut,) = message.invalid_tool_calls
    assert cut["args"] == decoder.script
    assert ("`max_tokens`" if reason == "length" else "no complete JSON") in (cut["error"] or "")
    assert message.response_metadata["finish_reason"] == reason
    streamed = _aggregate(llm.stream("hello"))
    assert (streamed.content, streamed.tool_calls) == ("", [])
    assert json.loads(streamed.invalid_tool_calls[0]["args"]) == decoder.script


def test_a_free_answer_of_a_model_with_tools_stays_one(decoder: ProbeDecoder) -> None:
    decoder.script, decoder.finish_reason = '{"name": "search", "arguments": {"que', "length"
    for choice in (None, "auto", {"type": "auto"}):
        message = chat(decoder).bind_tools([search], tool_choice=choice).invoke("hello")
        assert message.content == decoder.script


def test_a_choice_by_its_type_alone(decoder: ProbeDecoder) -> None:
    """As Anthropic's models take it."""
    llm = chat(decoder)
    llm.bind_tools([search], tool_choice={"type": "any"}).invoke("hello")
    assert decoder.requests[0].options["json_schema"]["required"] == ["name", "arguments"]
    llm.bind_tools([search], tool_choice={"type": "none"}).invoke("hello")
    assert decoder.tokenizer.last[1] is None


@pytest.mark.parametrize("broken_first", [False, True])
async def test_one_call_at_a_time_keeps_the_first(
    decoder: ProbeDecoder, broken_first: bool
) -> None:
    broken = "<tool_call>{broken</tool_call>"
    decoder.script = f"First. {broken}{broken}" if broken_first else f"First. {CALL}{CALL}{broken}"
    kept = 0 if broken_first else 1
    for several, calls, invalid in ((True, 2 * kept, 2 - kept), (False, kept, 1 - kept)):
        llm = chat(decoder).bind_tools([search], parallel_tool_calls=several)
        for message in (
            llm.invoke("hello"),
            await llm.ainvoke("hello"),
            _aggregate(llm.stream("hello")),
            _aggregate(await _collected(llm.astream("hello"))),
        ):
            assert message.content.strip() == "First."
            assert (len(message.tool_calls), len(message.invalid_tool_calls)) == (calls, invalid)


@pytest.mark.parametrize("choice", [None, "any"])
def test_built_in_tools_are_refused(decoder: ProbeDecoder, choice: Any) -> None:
    llm, built_in = chat(decoder), {"type": "web_search"}
    with pytest.raises(ValueError, match="got a tool of type `web_search`"):
        llm.bind_tools([search, built_in], tool_choice=choice)
    with pytest.raises(ValueError, match="pass your own function"):
        llm.invoke("hello", tools=[built_in], tool_choice=choice)


def test_a_schema_may_be_an_option_of_the_decoder(decoder: ProbeDecoder) -> None:
    schema = {"type": "boolean"}
    chat(decoder).invoke("hello", json_schema=schema)
    assert decoder.requests[0].options["json_schema"] == schema


def test_a_response_format_must_be_a_mapping_or_a_class(decoder: ProbeDecoder) -> None:
    for wrong in ("json_object", {"type": "json_schema", "json_schema": "x"}):
        with pytest.raises(ValueError, match="`response_format` must be"):
            chat(decoder).invoke("hello", response_format=wrong)


def test_a_run_id_of_a_batch_is_its_first_answers(decoder: ProbeDecoder) -> None:
    """As in core, which warns."""
    run_id = uuid4()
    with pytest.warns(RuntimeWarning, match="only for the first"):
        first, *others = chat(decoder).batch(["a", "b", "c"], {"run_id": run_id})
    assert str(run_id) in (first.id or "")
    assert len({first.id, *(message.id for message in others)}) == 3


class Joke(BaseModel):
    setup: str
    punchline: str


class JokeDict(TypedDict):
    setup: str
    punchline: str


ANSWER = json.dumps({"setup": "a", "punchline": "b"})


@pytest.mark.parametrize("schema", [Joke, JokeDict, Joke.model_json_schema()], ids=str)
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(decoder: ProbeDecoder, schema: Any, method: str) -> None:
    decoder.script = ANSWER
    if method == "function_calling":
        name = "JokeDict" if schema is JokeDict else "Joke"
        decoder.script = f'{{"name": "{name}", "arguments": {ANSWER}}}'
    llm = chat(decoder).with_structured_output(schema, method=method)  # type: ignore[arg-type]
    parsed = llm.invoke("hello")
    assert parsed == (Joke(setup="a", punchline="b") if schema is Joke else json.loads(ANSWER))
    given = decoder.requests[0].options["json_schema"]
    wanted = given if method == "json_schema" else given["properties"]["arguments"]
    assert set(wanted["properties"]) == {"setup", "punchline"}


def test_structured_output_with_the_raw_message(decoder: ProbeDecoder) -> None:
    llm = chat(decoder).with_structured_output(Joke, include_raw=True)
    decoder.script = ANSWER
    assert llm.invoke("hello")["parsed"] == Joke(setup="a", punchline="b")
    decoder.script = "no json"
    failed = llm.invoke("hello")
    assert failed["parsed"] is None
    assert failed["parsing_error"] is not None


def test_json_mode_and_wrong_methods(decoder: ProbeDecoder) -> None:
    decoder.script = ANSWER
    llm = chat(decoder)
    assert llm.with_structured_output(method="json_mode").invoke("hello") == json.loads(ANSWER)
    assert decoder.requests[0].options["json_schema"] == {"type": "object"}
    with pytest.raises(ValueError, match="`schema` must be given"):
        llm.with_structured_output()
    with pytest.raises(ValueError, match="`method` must be"):
        llm.with_structured_output(Joke, method="magic")  # type: ignore[arg-type]


class Watcher(BaseTracer):
    """Keeps what a tracer would send away."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def _persist_run(self, run: Any) -> None:
        self.sent.append(run.model_dump_json() if hasattr(run, "model_dump_json") else str(run))


def test_traces_know_neither_secrets_nor_given_references(decoder: ProbeDecoder) -> None:
    watcher = Watcher()
    llm = chat(decoder, hf_token="top secret")
    llm.invoke("hello", {"callbacks": [watcher]}, references=["private passage"])
    if CORE >= (1, 6):  # before, `stream` hands all arguments of a call to tracers
        list(llm.stream("hello", {"callbacks": [watcher]}, references=["private passage"]))
    assert watcher.sent
    for sent in watcher.sent:
        assert "top secret" not in sent
        assert "private passage" not in sent


def test_langsmith_parameters(decoder: ProbeDecoder) -> None:
    params = chat(decoder, temperature=0.5, stop=["x"])._get_ls_params(model="other")
    assert params["ls_provider"] == "llma"
    assert params["ls_model_name"] == "other"
    assert params["ls_temperature"] == 0.5
    assert params["ls_stop"] == ["x"]
    assert params["ls_model_type"] == "chat"


def test_dumps_hold_no_weights_and_no_secret(decoder: ProbeDecoder) -> None:
    llm = chat(decoder, hf_token="top secret", temperature=0.5)
    assert "top secret" not in dumps(llm)
    assert "ProbeDecoder" not in dumps(llm)
    restored = load(
        dumpd(llm),
        secrets_map={"HF_TOKEN": "top secret"},
        valid_namespaces=["langchain_llma"],
        allowed_objects=[ChatLLMA],
    )
    assert isinstance(restored, ChatLLMA)
    assert restored.temperature == 0.5
    assert "held" not in llm.model_dump()
    assert "held" not in repr(llm)
    for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy()):
        assert copied.decoder is decoder


def test_a_loaded_object_is_not_pickled(decoder: ProbeDecoder, registry: "Registry") -> None:
    """Its name may stand for other weights in another process."""
    for llm in (chat(decoder), LLMA.from_decoder(decoder)):
        with pytest.raises(TypeError, match="holds loaded objects and cannot be pickled"):
            pickle.dumps(llm.model_copy(update={"max_tokens": 5}))
    for llm in (ChatLLMA(model="m"), chat(decoder).model_copy(update={"model": "m"})):
        assert llm.invoke("hello").content == "loaded m"
        unpickled = pickle.loads(pickle.dumps(llm))
        assert unpickled.held.decoder is None
        assert unpickled.invoke("hello").content == "loaded m"


class Registry:
    """Stands for the models that can be loaded."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, dict[str, Any]]] = []

    def shared(self, name: str, **options: Any) -> ProbeDecoder:
        self.loaded.append((name, options))
        return ProbeDecoder(f"loaded {name}")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setitem(vars(llma_rag), "Decoder", registry)
    return registry


@pytest.mark.parametrize("kind", [ChatLLMA, LLMA])
def test_a_configured_model_keeps_its_decoder(
    decoder: ProbeDecoder, registry: Registry, kind: Any
) -> None:
    """LangChain rebuilds it from its fields."""
    llm = kind.from_decoder(decoder, temperature=0.5)
    told = llm.configurable_fields(temperature=ConfigurableField(id="t"))
    told.with_config(configurable={"t": 0}).invoke("hello")
    assert decoder.requests[0].options["do_sample"] is False
    assert not registry.loaded


def test_a_copy_for_another_model_loads_it(decoder: ProbeDecoder, registry: Registry) -> None:
    llm = chat(decoder)
    told = llm.configurable_fields(model=ConfigurableField(id="m"))
    message = told.with_config(configurable={"m": "other"}).invoke("hello")
    assert message.content == "loaded other"
    assert llm.model_copy(update={"dtype": "bfloat16"}).invoke("hello").content == "loaded probe"
    assert llm.invoke("hello").content == "the answer is ok"
    assert registry.loaded == [("other", {"dtype": "auto"}), ("probe", {"dtype": "bfloat16"})]


def test_earlier_turns_reach_the_decoder(decoder: ProbeDecoder) -> None:
    """Where the model has answered before; a first question has none."""
    llm = chat(decoder)
    llm.invoke([SystemMessage("Be brief."), HumanMessage("one")])
    llm.invoke([HumanMessage("one"), AIMessage("two"), AIMessage(""), HumanMessage("three")])
    told = [request.options.get("history") for request in decoder.requests]
    assert told == [None, ("one", "two")]


def test_token_counts_are_the_models_own(decoder: ProbeDecoder) -> None:
    llm = chat(decoder)
    assert llm.get_num_tokens("twelve chars") == 3
    assert llm.get_num_tokens_from_messages([HumanMessage("hi")]) == len("<user>hi")
    assert chat(decoder, custom_get_token_ids=lambda text: [1]).get_num_tokens("abc") == 1


ALTERNATING = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate, the user first.') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
)


def _byte_chat(answer: str, template: str, **fields: Any) -> ChatLLMA:
    """Make a chat model over a real tokenizer, a token for each byte, that says `answer`."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = template
    model = ScriptedModel([*tokenizer(answer)["input_ids"], 1], eos_token_id=1)
    return ChatLLMA.from_decoder(llma_rag.Decoder(model, tokenizer, warmup=False), **fields)


ONE_SYSTEM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('The system message must come first.') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
)
ANY_SYSTEM = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (ONE_SYSTEM, "<system>be brief\nbe kind<user>hello"),
        (ANY_SYSTEM, "<system>be brief<system>be kind<user>hello"),
    ],
)
def test_system_messages_are_joined_where_a_template_refuses_them(
    template: str, written: str
) -> None:
    tokenizer = _byte_chat("x", template).decoder.tokenizer
    system = [SystemMessage("be brief"), SystemMessage(""), SystemMessage("be kind")]
    if template == ANY_SYSTEM:
        del system[1]
    ids = prompt_ids(tokenizer, [*system, HumanMessage("hello")], (), Template())
    assert tokenizer.decode(ids) == written
    if template == ONE_SYSTEM:
        with pytest.raises(TemplateError, match="must come first"):
            prompt_ids(tokenizer, [HumanMessage("hello"), *system], (), Template())


CALLING = (
    "{{ '<|user|>' }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{{ '<|assistant|>' }}{# knows tools #}"
)
RESPONSES = {
    "start_anchor": "<|assistant|>",
    "defaults": {"role": "assistant"},
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "</s>"},
    },
}


def _parsing_chat(answer: str, **fields: Any) -> ChatLLMA:
    """Make a chat model whose tokenizer knows itself how answers are read."""
    llm = _byte_chat(answer, CALLING, **fields)
    llm.decoder.tokenizer.response_template = RESPONSES  # type: ignore[attr-defined]  # a stand-in
    return llm


def _both_ways(llm: Any, **options: Any) -> list[Any]:
    return [llm.invoke("q", **options), _aggregate(llm.stream("q", **options))]


def test_a_tokenizer_reads_its_models_calls() -> None:
    for message in _both_ways(_parsing_chat(f"hi {CALL}").bind_tools([search])):
        assert message.content.strip() == "hi"
        assert [call["args"] for call in message.tool_calls] == [{"query": "x"}]


def test_a_forced_call_is_read_beside_a_tokenizers_own_way() -> None:
    """Our schema forces bare JSON, which is no call in the tokenizer's eyes."""
    pytest.importorskip("llguidance", reason="forced calls are an optional extra")
    call = json.dumps({"name": "search", "arguments": {"query": "x"}})
    for message in _both_ways(_parsing_chat(call).bind_tools([search], tool_choice="any")):
        assert message.content == ""
        assert [call["args"] for call in message.tool_calls] == [{"query": "x"}]
    llm = _parsing_chat(json.dumps({"name": "Joke", "arguments": json.loads(ANSWER)}))
    parsed = llm.with_structured_output(Joke, method="function_calling").invoke("q")
    assert parsed == Joke(setup="a", punchline="b")


def test_a_cut_call_is_invalid_beside_a_tokenizers_own_way() -> None:
    llm = _parsing_chat(f"hi {CALL}", max_tokens=40).bind_tools([search])
    for message in _both_ways(llm):
        assert message.content == "hi"
        assert not message.tool_calls
        assert "argume" in message.invalid_tool_calls[0]["args"]
        assert message.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("answer", ["STOP", "hello STOP more", f"hello {CALL}STOP", "hello"])
def test_a_stop_string_is_cut_before_a_tokenizer_reads(answer: str) -> None:
    llm = _parsing_chat(answer).bind_tools([search])
    for message in _both_ways(llm, stop=["STOP"]):
        assert message.content.strip() == ("hello" if "hello" in answer else "")
        assert len(message.tool_calls) == answer.count(CALL)


def test_parts_of_a_conversation_are_counted() -> None:
    """Of a template that refuses them the texts are counted."""
    llm = _byte_chat("", ALTERNATING)
    count = llm.get_num_tokens_from_messages
    assert count([]) == 0
    assert count([HumanMessage("hi")]) == len("<user>hi")
    assert count([AIMessage("hi")]) == 2
    assert count([AIMessage("hi"), AIMessage("you")]) == 5
    with pytest.raises(ValueError, match="must hold text only"):
        count([AIMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


def test_conversations_are_trimmed_by_their_tokens() -> None:
    llm = _byte_chat("", ALTERNATING)
    turns = [HumanMessage("one " * 9), AIMessage("two " * 9), HumanMessage("three")]
    assert trim_messages(turns, max_tokens=60, token_counter=llm) == turns[1:]
    assert trim_messages(turns, max_tokens=60, token_counter=llm, start_on="human") == turns[2:]
    (long, options) = (HumanMessage("\n".join("abcdefgh" * 9)), {"allow_partial": True})
    (trimmed,) = trim_messages(
        [long], max_tokens=10, token_counter=llm, strategy="first", **options
    )
    assert 0 < len(trimmed.content) < 10


def test_a_classic_memory_forgets_by_tokens() -> None:
    classic = pytest.importorskip("langchain_classic.memory", reason="an optional companion")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = classic.ConversationTokenBufferMemory(
            llm=_byte_chat("", ALTERNATING), max_token_limit=10, return_messages=True
        )
    memory.save_context({"input": "word " * 50}, {"output": "word " * 50})
    assert memory.buffer == []
    memory.save_context({"input": "a"}, {"output": "b"})
    assert [message.content for message in memory.buffer] == ["b"]


def test_profile(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')
    profile = ChatLLMA(model=tmp_path).profile
    assert profile is not None
    assert profile["max_input_tokens"] == 2048
    assert profile["structured_output"]
    assert "tool_calling" not in profile
    nested = '{"text_config": {"max_position_embeddings": 512}, "vision_config": {}}'
    (tmp_path / "config.json").write_text(nested)
    assert (ChatLLMA(model=tmp_path).profile or {})["max_input_tokens"] == 512
    assert "max_input_tokens" not in (ChatLLMA(model="no/such-model").profile or {})
    (tmp_path / "config.json").write_text("{broken")
    assert "max_input_tokens" not in (ChatLLMA(model=tmp_path).profile or {})


@pytest.mark.parametrize(("template", "calls"), [("{{ messages }}", False), (TEMPLATE, True)])
def test_the_profile_knows_the_templates_tools(tmp_path: Any, template: str, calls: bool) -> None:
    told = json.dumps({"chat_template": template})
    (tmp_path / "tokenizer_config.json").write_text(told)
    for llm in (ChatLLMA(model=tmp_path), ChatLLMA(model="x", chat_template=template)):
        assert llm.profile is not None
        assert llm.profile["tool_calling"] is calls
        assert llm.profile["tool_choice"]
    (tmp_path / "chat_template.jinja").write_text("{{ tools }}")
    assert (ChatLLMA(model=tmp_path).profile or {})["tool_calling"]


def test_the_profile_of_a_loaded_model(decoder: ProbeDecoder) -> None:
    """Middleware that counts in fractions of the context asks for it."""
    profile = chat(decoder).profile
    assert profile is not None
    assert profile["max_input_tokens"] == decoder.context_length
    assert profile["tool_calling"]
    assert not (chat(decoder, chat_template="{{ messages }}").profile or {})["tool_calling"]
    decoder.tokenizer.chat_template = "{{ messages }}"
    assert not (chat(decoder).profile or {})["tool_calling"]


def test_another_model_for_one_call(decoder: ProbeDecoder, registry: Registry) -> None:
    message = chat(decoder).invoke("hello", model="second")
    assert message.content == "loaded second"
    assert message.response_metadata["model_name"] == "second"
    assert registry.loaded == [("second", {"dtype": "auto"})]
