import doctest
import inspect
import json
import logging
import pickle

import pytest
import torch
from llama_index.core.base.llms import types
from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_template
from llama_index.core.base.llms.types import (
    AudioBlock,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import NodeWithScore, TextNode

from integrations.llama_index.tests.probes import make_index, read
from integrations.llama_index.tests.scripted import ScriptedDecoder
from llama_index.llms.llma import LLMA, LLMAFunctionCalling, options
from llma_rag import ContextOverflowError, Decoder, Reference

MESSAGES = [
    ChatMessage(role="system", content="be brief"),
    ChatMessage(role="user", content="héllo wörld"),
]
ENDPOINTS = (
    "complete",
    "stream_complete",
    "acomplete",
    "astream_complete",
    "chat",
    "stream_chat",
    "achat",
    "astream_chat",
)


@pytest.fixture
def scripted():
    return LLMA(decoder=ScriptedDecoder())


@pytest.fixture
def llm(model, tokenizer):
    return LLMA(model=model, tokenizer=tokenizer, context_window=2048, max_new_tokens=24)


async def call(llm, endpoint, prompt="hello", **options):
    """Call an endpoint; return the responses, one or one per chunk."""
    argument = [ChatMessage(content=prompt)] if "chat" in endpoint else prompt
    response = getattr(llm, endpoint)(argument, **options)
    if inspect.isawaitable(response):
        response = await response
    if hasattr(response, "__aiter__"):
        return [chunk async for chunk in response]
    return list(response) if inspect.isgenerator(response) else [response]


def text_of(response):
    return response.message.content if hasattr(response, "message") else response.text


def prompts_of(llm):
    return [llm.decoder.tokenizer.decode(call.prompt) for call in llm.decoder.calls]


# The class ---------------------------------------------------------------------------------------


def test_it_is_an_llm():
    assert issubclass(LLMA, LLM)
    assert LLMA.class_name() == "LLMA"


def test_it_takes_huggingface_llms_arguments_in_their_order():
    module = pytest.importorskip(
        "llama_index.llms.huggingface", reason="compared with llama-index-llms-huggingface"
    )
    theirs = list(inspect.signature(module.HuggingFaceLLM.__init__).parameters)
    ours = inspect.signature(LLMA.__init__).parameters
    assert list(ours)[: len(theirs)] == theirs
    assert {p.kind for p in list(ours.values())[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_metadata(scripted):
    metadata = LLMA(decoder=ScriptedDecoder(), max_new_tokens=7, is_chat_model=True).metadata
    assert (metadata.context_window, metadata.num_output) == (3900, 7)
    assert metadata.model_name == "scripted"
    assert metadata.is_chat_model
    assert not metadata.is_function_calling_model
    assert not scripted.metadata.is_chat_model


def test_the_window_is_the_models_where_that_is_smaller():
    decoder = ScriptedDecoder()
    decoder.context_length = 100
    assert LLMA(decoder=decoder).metadata.context_window == 100


def test_a_model_must_be_named():
    with pytest.raises(ValueError, match="`model_name` or `model` must be given"):
        LLMA()


def test_a_missing_folder_is_named_in_the_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        LLMA(model_name=str(tmp_path / "nowhere"))


def test_a_model_is_loaded_once(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    name = str(tmp_path)
    first = LLMA(model_name=name, tokenizer_name=name)
    second = LLMA(model_name=name, max_new_tokens=3)
    assert first.decoder is second.decoder
    assert first.metadata.model_name == name
    first.decoder.close()


def test_a_loaded_model_has_one_decoder(model, tokenizer):
    first, second = LLMA(model=model, tokenizer=tokenizer), LLMA(model=model, tokenizer=tokenizer)
    assert first.decoder is second.decoder


def test_loading_arguments_reach_the_model(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = LLMA(model_name=str(tmp_path), model_kwargs={"torch_dtype": torch.float64})
    assert llm.decoder.model.dtype == torch.float64
    json.dumps(llm.to_dict())
    llm.decoder.close()


def shout(text):
    return text.upper()


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("cls", [LLMA, LLMAFunctionCalling])
def test_a_pickled_llm_answers_with_the_model_that_is_loaded(cls, folder):
    llm = cls(
        model_name=folder,
        device_map=None,
        max_new_tokens=5,
        stopping_ids=[7],
        model_kwargs={"dtype": torch.float64},
        generate_kwargs={"seed": 1},
        query_wrapper_prompt="<q>{query_str}</q>",
        completion_to_prompt=shout,
        citations="blocks",
        process_scope=True,
        capture="off",
    )
    llm.system_prompt = "set later"
    pickled = pickle.dumps(llm)
    again = pickle.loads(pickled)
    assert type(again) is cls
    assert again.decoder is llm.decoder
    assert again.complete("x").text == llm.complete("x").text
    assert again.chat(MESSAGES).message.content == llm.chat(MESSAGES).message.content
    kept = set(cls.model_fields) - {"callback_manager", "messages_to_prompt"}
    assert {name: getattr(again, name) for name in kept} == {n: getattr(llm, n) for n in kept}
    assert len(pickled) < 5000, "neither the model nor its tokenizer is in it"
    assert pickle.loads(pickle.dumps(again)).max_new_tokens == 5
    llm.decoder.close()


def test_a_pickle_keeps_the_callers_template_and_leaves_callbacks_behind(folder):
    handler = TokenCountingHandler(tokenizer=lambda text: [0])
    llm = LLMA(
        model_name=folder,
        messages_to_prompt=generic_template,
        callback_manager=CallbackManager([handler]),
    )
    again = pickle.loads(pickle.dumps(llm))
    assert again.messages_to_prompt is generic_template
    assert again.callback_manager.handlers == []
    assert llm.callback_manager.handlers == [handler]
    llm.decoder.close()


def test_a_pickle_whose_model_is_gone_says_so(folder, tmp_path):
    llm = LLMA(model_name=folder)
    pickled = pickle.dumps(llm)
    llm.decoder.close()
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    with pytest.raises(OSError, match=tmp_path.name):
        pickle.loads(pickled)


@pytest.mark.parametrize("given", ["decoder", "model", "tokenizer"])
def test_an_llm_of_loaded_objects_refuses_to_be_pickled(given, model, tokenizer, folder):
    llm = {
        "decoder": lambda: LLMA(decoder=Decoder(model, tokenizer, warmup=False)),
        "model": lambda: LLMA(model=model, tokenizer=tokenizer),
        "tokenizer": lambda: LLMA(model_name=folder, tokenizer=tokenizer),
    }[given]()
    with pytest.raises(TypeError, match=r"`decoder`, `model` or `tokenizer`.*`model_name`"):
        pickle.dumps(llm)
    llm.decoder.close()


@pytest.mark.skipif("rate_limiter" not in LLM.model_fields, reason="of llama-index-core 0.14")
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_rate_limiter_is_asked_once_per_call(endpoint):
    class Limiter:
        asked = 0

        def acquire(self):
            self.asked += 1

        async def async_acquire(self):
            self.asked += 1

    limiter = Limiter()
    await call(LLMA(decoder=ScriptedDecoder(), rate_limiter=limiter), endpoint)
    assert limiter.asked == 1


def test_unknown_options_are_refused_at_once():
    with pytest.raises(TypeError, match="unknown options: `temprature`"):
        LLMA(decoder=ScriptedDecoder(), generate_kwargs={"temprature": 1})


# Endpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_all_endpoints_answer_alike(llm, endpoint):
    kind = "chat" if "chat" in endpoint else "complete"
    (expected,) = await call(llm, kind)
    responses = await call(llm, endpoint)
    assert text_of(responses[-1]) == text_of(expected)
    if "stream" in endpoint:
        assert "".join(response.delta for response in responses) == text_of(expected)
        assert len(responses) - 1 <= expected.raw["llma"]["forward_passes"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_streamed_text_grows_and_only_the_last_chunk_has_raw(endpoint):
    responses = await call(LLMA(decoder=ScriptedDecoder()), endpoint, references=["x" * 50])
    text = ""
    for response in responses[:-1]:
        text += response.delta
        assert text_of(response) == text
        assert response.raw is None
        assert response.delta
    assert responses[-1].raw["usage"]["completion_tokens"] == len(text_of(responses[-1]))
    assert len(responses) == (4 if "stream" in endpoint else 1)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_one_start_and_one_end_event_per_call(scripted, endpoint):
    """HuggingFaceLLM sends up to three pairs."""
    events = []

    class Handler(BaseEventHandler):
        @classmethod
        def class_name(cls):
            return "Handler"

        def handle(self, event, **kwargs):
            events.append(type(event))

    handler = Handler()
    get_dispatcher().add_event_handler(handler)
    try:
        await call(scripted, endpoint)
    finally:
        get_dispatcher().event_handlers.remove(handler)
    pairs = {LLMChatStartEvent, LLMChatEndEvent, LLMCompletionStartEvent, LLMCompletionEndEvent}
    kind = "Chat" if "chat" in endpoint else "Completion"
    sent = [event.__name__ for event in events if event in pairs]
    assert sent == [f"LLM{kind}StartEvent", f"LLM{kind}EndEvent"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_tokens_are_counted_once_and_exactly(endpoint):
    counter = TokenCountingHandler(tokenizer=lambda text: [0])
    llm = LLMA(decoder=ScriptedDecoder(), callback_manager=CallbackManager([counter]))
    responses = await call(llm, endpoint)
    usage = responses[-1].raw["usage"]
    assert len(counter.llm_token_counts) == 1
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"]


def test_raw_is_json(scripted):
    raw = scripted.complete(
        "x", references=["some text to copy from, long enough to be cited."]
    ).raw
    assert json.loads(json.dumps(raw)) == raw
    assert raw["finish_reason"] == "stop"
    assert raw["llma"]["forward_passes"] == 3
    assert raw["llma"]["references"] == 1
    assert raw["llma"]["reach"] == "explicit"


# Prompts -----------------------------------------------------------------------------------------


def test_system_prompt_wrapper_and_completion_to_prompt_are_applied_once():
    llm = LLMA(
        decoder=ScriptedDecoder(),
        system_prompt="SYS",
        query_wrapper_prompt="<q>{query_str}</q>",
        completion_to_prompt=lambda text: f"[{text}]",
    )
    llm.complete("x")
    list(llm.stream_complete("x"))
    llm.complete("x", formatted=True)
    assert prompts_of(llm) == ["<s>[SYS <q>x</q>]", "<s>[SYS <q>x</q>]", "<s>x"]


async def test_every_endpoint_writes_the_same_prompt():
    llm = LLMA(decoder=ScriptedDecoder(), system_prompt="SYS", query_wrapper_prompt="{query_str}!")
    for endpoint in ENDPOINTS:
        await call(llm, endpoint, "x")
    written = prompts_of(llm)
    assert set(written[:4]) == {"<s>SYS x!"}
    assert set(written[4:]) == {"<s><s><|im|>system\nSYS\n<|im|>user\nx\n<|im|>assistant\n"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "system\nSYS\n"),
        ([ChatMessage(content="q")], "system\nSYS\n<|im|>user\nq\n"),
        ([ChatMessage(role="system", content="own")], "system\nSYS\n\nown\n"),
        ([ChatMessage(role="system", content="SYS")], "system\nSYS\n"),
    ],
)
def test_a_chat_has_one_system_message(messages, expected):
    llm = LLMA(decoder=ScriptedDecoder(), system_prompt="SYS", hf_compat=False)
    llm.chat(messages)
    assert prompts_of(llm) == [f"<s><|im|>{expected}<|im|>assistant\n"]


STRICT = "{% if m.role == 'system' and not loop.first %}{{ raise_exception('Two!') }}{% endif %}"


@pytest.mark.parametrize("cls", [LLMA, LLMAFunctionCalling])
def test_engines_write_one_system_message_where_a_template_refuses_two(cls):
    llm = cls(decoder=ScriptedDecoder(), system_prompt="SYS", is_chat_model=True)
    tokenizer = llm.decoder.tokenizer
    begin = "{% for m in messages %}"
    assert begin in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(begin, begin + STRICT)
    index = make_index(size=3, length=20)
    index.as_query_engine(llm=llm).query("x")
    memory = ChatMemoryBuffer.from_defaults()
    index.as_chat_engine(llm=llm, chat_mode="condense_plus_context", memory=memory).chat("x")
    assert [prompt.count("<|im|>system\nSYS\n") for prompt in prompts_of(llm)] == [1, 1]
    assert [prompt.count("<|im|>system") for prompt in prompts_of(llm)] == [1, 1]


def test_predict_applies_the_system_prompt_once():
    for chatty in (False, True):
        llm = LLMA(decoder=ScriptedDecoder(), system_prompt="SYS", is_chat_model=chatty)
        llm.predict(PromptTemplate("{a}"), a="x")
        list(llm.stream(PromptTemplate("{a}"), a="x"))
        assert [prompt.count("SYS") for prompt in prompts_of(llm)] == [1, 1]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("role", ["user", "system"])
def test_the_text_of_a_citable_block_is_in_the_prompt(template, role):
    llm = LLMA(decoder=ScriptedDecoder(), system_prompt="SYS")
    if not template:
        llm.decoder.tokenizer.chat_template = None
    content = [TextBlock(text="cite"), TextBlock(text="me")]
    block = CitableBlock(title="t", source="s", content=content)
    llm.chat([ChatMessage(role=role, blocks=[TextBlock(text="q"), block, TextBlock(text="r")])])
    assert "q\ncite\nme\nr\n" in prompts_of(llm)[0]
    assert [reference.text for reference in llm.decoder.calls[0].references] == ["cite", "me"]


UNREADABLE = {
    "image": ImageBlock(image=b"x"),
    "audio": AudioBlock(audio=b"x"),
    "document": DocumentBlock(data=b"x"),
}


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("cls", [LLMA, LLMAFunctionCalling])
def test_what_a_text_model_cannot_read_is_refused(cls, kind, template):
    llm = cls(decoder=ScriptedDecoder())
    if not template:
        llm.decoder.tokenizer.chat_template = None
    blocks = [TextBlock(text="What is this?"), UNREADABLE[kind]]
    with pytest.raises(TypeError, match=f"must hold text only, got a block of type `{kind}`"):
        llm.chat([ChatMessage(role="user", blocks=blocks)])
    assert llm.decoder.calls == []


def test_an_image_in_a_citable_block_is_refused(scripted):
    block = CitableBlock(title="t", source="s", content=[UNREADABLE["image"]])
    with pytest.raises(TypeError, match="got a block of type `image`"):
        scripted.chat([ChatMessage(role="user", blocks=[block])])


@pytest.mark.skipif(not hasattr(types, "ThinkingBlock"), reason="of llama-index-core 0.14")
def test_blocks_that_say_nothing_to_the_model_are_left_out(scripted):
    blocks = [
        types.ThinkingBlock(content="hm"),
        TextBlock(text="so"),
        types.CachePoint(cache_control=types.CacheControl(type="ephemeral")),
    ]
    scripted.chat([ChatMessage(role="assistant", blocks=blocks)])
    assert "<|im|>assistant\nso\n" in prompts_of(scripted)[0]
    assert "hm" not in prompts_of(scripted)[0]


async def test_half_a_character_is_replaced(scripted):
    for endpoint in ENDPOINTS:
        await call(scripted, endpoint, "bad \ud83d, good \ud83d\ude00")
    assert all("bad \ufffd, good \U0001f600" in prompt for prompt in prompts_of(scripted))


def test_a_tokenizer_without_a_template_gets_the_generic_one():
    decoder = ScriptedDecoder()
    decoder.tokenizer.chat_template = None
    llm = LLMA(decoder=decoder)
    llm.chat(MESSAGES)
    assert prompts_of(llm) == ["<s>system: be brief\nuser: héllo wörld\nassistant: "]


def test_two_beginnings_of_text_are_kept_for_compatibility_and_named_once(caplog):
    prompts = []
    for compatible in (True, False):
        llm = LLMA(decoder=ScriptedDecoder(), hf_compat=compatible)
        llm.decoder.tokenizer.name_or_path = f"named {compatible}"
        with caplog.at_level(logging.WARNING):
            llm.chat(MESSAGES)
            llm.chat(MESSAGES)
        prompts.append(prompts_of(llm)[0])
    assert prompts[0] == "<s>" + prompts[1]
    assert prompts[1].count("<s>") == 1
    assert [r.message for r in caplog.records if "two beginning-of-text" in r.message] == [
        "Prompts for `named True` begin with two beginning-of-text tokens, as HuggingFaceLLM "
        "writes them; pass `hf_compat=False` for one."
    ]


def test_nothing_of_an_answer_but_its_text_enters_the_next_prompt():
    """Citations in `additional_kwargs` would be printed into the prompt."""
    llm = LLMA(decoder=ScriptedDecoder(), citations="blocks", capture="off")
    node = TextNode(text="0123 a passage that is long enough to be copied", id_="secret-id")
    message = llm.chat(MESSAGES, references=[node]).message
    assert any(isinstance(block, CitationBlock) for block in message.blocks)
    assert message.additional_kwargs == {}
    llm.chat([*MESSAGES, message, ChatMessage(content="and?")])
    assert "secret-id" not in prompts_of(llm)[-1]
    assert prompts_of(llm)[-1].count("long enough") == 1
    assert ChatMessage.model_validate_json(message.model_dump_json()) == message


# Options -----------------------------------------------------------------------------------------


def test_options_of_a_call_come_before_those_of_the_constructor():
    llm = LLMA(decoder=ScriptedDecoder(), max_new_tokens=9, generate_kwargs={"top_k": 3, "seed": 1})
    llm.complete("x", seed=2, stop=["end"], repetition_penalty=1.1)
    assert llm.decoder.calls[0].options == {
        "max_new_tokens": 9,
        "top_k": 3,
        "seed": 2,
        "stop": ["end"],
        "repetition_penalty": 1.1,
    }


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({}, {}),
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
        ({"temperature": 0.0}, {"do_sample": False}),
        ({"temperature": 0.7, "do_sample": False}, {"temperature": 0.7, "do_sample": False}),
        ({"temperature": 0, "do_sample": True}, {"do_sample": True}),
        ({"pad_token_id": 0, "use_cache": True, "num_beams": 1, "top_k": None}, {}),
        ({"max_tokens": None}, {}),
        ({"max_new_tokens": None, "temperature": None, "draft": None, "namespace": None}, {}),
        ({"num_beams": 2}, {"num_beams": 2}),
        ({"draft": False, "namespace": "n"}, {"draft": False, "namespace": "n"}),
    ],
)
def test_options_that_reach_the_decoder(scripted, call, expected):
    """What nobody sets is not sent: the model's generation_config decides."""
    scripted.complete("x", **call)
    assert scripted.decoder.calls[0].options == {"max_new_tokens": 256, **expected}


@pytest.mark.parametrize(
    ("standing", "call", "expected"),
    [
        ({"temperature": 0}, {}, {"do_sample": False}),
        ({"temperature": 0.0}, {"temperature": None}, {"do_sample": False}),
        ({"temperature": 0}, {"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
        ({"temperature": 0}, {"do_sample": True}, {"do_sample": True}),
        ({"temperature": 0, "do_sample": True}, {}, {"do_sample": True}),
        ({"temperature": 0.7, "do_sample": True}, {"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.7}, {}, {"temperature": 0.7}),
        ({"max_tokens": 100}, {"max_new_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_new_tokens": 100}, {"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 100}, {"max_new_tokens": None}, {"max_new_tokens": 100}),
        ({"max_tokens": None}, {}, {}),
        ({"top_k": 3, "seed": 1}, {"top_k": None, "seed": None}, {"top_k": 3, "seed": 1}),
        ({"num_beams": 2}, {"num_beams": 1}, {}),
    ],
)
def test_the_layer_nearer_to_the_call_wins(standing, call, expected):
    llm = LLMA(decoder=ScriptedDecoder(), generate_kwargs=standing)
    llm.complete("x", **call)
    assert llm.decoder.calls[0].options == {"max_new_tokens": 256, **expected}


def test_the_example_of_the_options():
    assert doctest.testmod(options).failed == 0


def test_a_standing_temperature_of_zero_is_greedy_on_a_model_that_samples(model, tokenizer):
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=0)
    arguments = {"model": model, "tokenizer": tokenizer, "max_new_tokens": 12}
    greedy = LLMA(**arguments, generate_kwargs={"temperature": 0})
    sampling = LLMA(**arguments)
    assert len({greedy.complete("hello").text for _ in range(3)}) == 1
    assert len({sampling.complete("hello", seed=seed).text for seed in range(3)}) == 3
    greedy.decoder.close()


def test_stopping_ids_join_the_models_own():
    llm = LLMA(decoder=ScriptedDecoder(), stopping_ids=[7, 9])
    llm.complete("x")
    assert llm.decoder.calls[0].options["eos_token_id"] == [2, 7, 9]


def test_a_temperature_that_does_nothing_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        LLMA(decoder=ScriptedDecoder(), generate_kwargs={"temperature": 0.5})
        LLMA(decoder=ScriptedDecoder(), generate_kwargs={"temperature": 0.5, "do_sample": True})
    assert [r.message.count("nothing sets `do_sample`") for r in caplog.records] == [1]


def test_max_new_tokens_and_stop_are_honoured(llm):
    assert llm.complete("x", max_new_tokens=3).raw["usage"]["completion_tokens"] == 3
    full = llm.complete("hello").text
    stop = full[4:7]
    stopped = llm.complete("hello", stop=[stop])
    assert stopped.text == full[: full.find(stop)]
    assert stopped.raw["finish_reason"] == "stop"
    assert "".join(c.delta for c in llm.stream_complete("hello", stop=[stop])) == stopped.text


@pytest.mark.parametrize("option", [{"bogus": 1}, {"num_beams": 4}])
def test_an_unknown_option_of_a_call_is_refused(llm, option):
    with pytest.raises(TypeError, match=next(iter(option))):
        llm.complete("x", **option)


# Context window ----------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_prompt_that_fills_the_window_is_refused_before_the_model_runs(endpoint):
    llm = LLMA(decoder=ScriptedDecoder(), context_window=64)
    with pytest.raises(ContextOverflowError, match=r"\d+ tokens, but the context window of 64"):
        await call(llm, endpoint, "a" * 64)
    assert llm.decoder.calls == []


def test_the_answer_is_cut_to_the_window():
    llm = LLMA(decoder=ScriptedDecoder(), context_window=64)
    llm.complete("a" * 60)
    assert llm.decoder.calls[0].options["max_new_tokens"] == 3


@pytest.mark.parametrize(
    ("mode", "streaming"),
    [
        ("compact", False),
        ("compact", True),
        ("refine", False),
        ("refine", True),
        ("tree_summarize", False),
        ("tree_summarize", True),
        ("accumulate", False),
    ],
)
async def test_an_overflow_is_not_swallowed_by_a_query_engine(mode, streaming):
    """Synthesizers answer "Empty Response" to a ValueError of a model call."""
    llm = LLMA(decoder=ScriptedDecoder(), context_window=1200)
    index = make_index(size=2, length=300)
    engine = index.as_query_engine(llm=llm, response_mode=mode, streaming=streaming)
    with pytest.raises(RuntimeError, match="context window of 1200"):
        str(engine.query("alpha"))
    with pytest.raises(RuntimeError, match="context window of 1200"):
        await read(engine, "alpha")


def test_llama_index_can_measure_with_this_tokenizer(scripted, monkeypatch):
    import llama_index.core

    monkeypatch.setattr(llama_index.core, "global_tokenizer", None)
    scripted.use_as_global_tokenizer()
    assert len(llama_index.core.global_tokenizer("abc")) == 3


# References --------------------------------------------------------------------------------------


def test_references_of_a_call():
    llm = LLMA(decoder=ScriptedDecoder())
    node = TextNode(text="of a node", id_="n")
    llm.complete(
        "x", references=["a text", Reference("named", id="r"), node, NodeWithScore(node=node), 7]
    )
    llm.complete("x", references="only one")
    given = [[(r.text, r.id) for r in call.references] for call in llm.decoder.calls]
    assert given == [
        [("a text", None), ("named", "r"), ("of a node", "n")],
        [("only one", None)],
    ]


def test_citable_blocks_are_references():
    llm = LLMA(decoder=ScriptedDecoder())
    block = CitableBlock(title="t", source="s", content=[TextBlock(text="cite me")])
    llm.chat([ChatMessage(role="user", blocks=[TextBlock(text="q"), block])])
    assert [(r.text, r.id) for r in llm.decoder.calls[0].references] == [("cite me", "s")]


def test_capture_can_be_switched_off():
    index = make_index(size=3, length=20)
    counts = []
    for capture in ("auto", "off"):
        llm = LLMA(decoder=ScriptedDecoder(), capture=capture)
        index.as_query_engine(llm=llm, similarity_top_k=2).query("alpha")
        counts.append(len(llm.decoder.calls[0].references))
    assert counts == [2, 0]
