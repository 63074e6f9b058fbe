"""LangChain's names of options, and the defaults they must not invent."""

from typing import Any

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField
from pydantic import SecretStr
from transformers import QuantoConfig

from integrations.langchain.tests.probes import ProbeDecoder, chat, text_model
from langchain_llma import LLMA, ChatLLMA
from langchain_llma.options import from_pipeline_kwargs, generation_options


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([{}], {}),
        ([{"temperature": None, "top_p": None}], {}),
        ([{"temperature": 0}], {"do_sample": False}),
        ([{"temperature": 0.0, "top_p": 0.5, "seed": 3}], {"do_sample": False}),
        ([{"temperature": 0.5}], {"temperature": 0.5, "do_sample": True}),
        ([{"temperature": 0}, {"temperature": 0.5}], {"temperature": 0.5, "do_sample": True}),
        ([{"temperature": 0.5, "do_sample": False}], {"do_sample": False}),
        ([{"temperature": 0, "do_sample": True}], {"do_sample": False}),
        ([{"temperature": 0}, {"do_sample": True}], {"do_sample": True}),
        (
            [{"do_sample": False, "seed": 1}, {"temperature": 0.5}],
            {"temperature": 0.5, "do_sample": True, "seed": 1},
        ),
        ([{"top_p": 0.9, "seed": 1}], {"top_p": 0.9, "seed": 1}),
        ([{"max_tokens": 5}, {"max_new_tokens": 7}], {"max_new_tokens": 7}),
        ([{"max_new_tokens": 5}, {"max_completion_tokens": 7}], {"max_new_tokens": 7}),
        ([{"stop": ["a"]}, {"stop": []}], {}),
        ([{"stop": ["a"]}, {"stop": ["b"]}], {"stop": ["b"]}),
        ([{"timeout": 2.0}], {"max_time": 2.0}),
        ([{"no_such_option": 1}], {"no_such_option": 1}),
    ],
)
def test_layers(layers: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert generation_options(*layers) == expected


def test_nothing_is_set_that_the_user_left_unset(decoder: ProbeDecoder) -> None:
    """A model whose own configuration samples must keep sampling."""
    chat(decoder).invoke("hello")
    text_model(decoder).invoke("hello")
    expected = {"max_new_tokens": 512, "draft": True, "namespace": None}
    assert [request.options for request in decoder.requests] == [expected] * 2


def test_fields_and_calls(decoder: ProbeDecoder) -> None:
    llm = chat(decoder, temperature=0.3, max_tokens=9, stop=["."], options={"min_p": 0.1})
    llm.invoke("hello", max_tokens=3, seed=1, draft=False, namespace="n")
    assert decoder.requests[0].options == {
        "draft": False,
        "namespace": "n",
        "temperature": 0.3,
        "do_sample": True,
        "min_p": 0.1,
        "max_new_tokens": 3,
        "seed": 1,
        "stop": ["."],
    }


def test_aliases() -> None:
    llm = ChatLLMA(model_name="m", max_new_tokens=3, stop_sequences="x", api_key="secret")
    assert (llm.model, llm.max_tokens, llm.stop) == ("m", 3, ["x"])
    assert llm.hf_token is not None
    assert "secret" not in repr(llm)


@pytest.mark.parametrize("cls", [ChatLLMA, LLMA])
def test_a_token_among_the_arguments_of_loading_is_a_secret(cls: Any) -> None:
    given = {"token": "top secret", "variant": "x"}
    for fields in (
        {"model_kwargs": given},
        {"tokenizer_kwargs": {"use_auth_token": SecretStr("top secret")}, "model_kwargs": given},
        {"model_kwargs": given, "api_key": "top secret"},
    ):
        for llm in (cls(model="m", **fields), cls.from_model_id("m", **fields)):
            shown = (dumps(llm), repr(llm), _key(llm), llm._identifying_params)
            assert "top secret" not in str(shown)
            assert llm._loading()["token"] == "top secret"
            assert llm.model_kwargs == {"variant": "x"}
    assert cls(model="m", model_kwargs={"token": False}).model_kwargs == {"token": False}


@pytest.mark.parametrize("cls", [ChatLLMA, LLMA])
def test_two_tokens_are_refused(cls: Any) -> None:
    with pytest.raises(TypeError, match="`hf_token` must be one token") as raised:
        cls(model="m", model_kwargs={"token": "one"}, tokenizer_kwargs={"token": "two"})
    assert "two" not in str(raised.value)


@pytest.mark.parametrize("cls", [ChatLLMA, LLMA])
def test_unknown_fields_are_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match="no_such_field"):
        cls(model="m", no_such_field=1)


def test_pipeline_arguments() -> None:
    assert from_pipeline_kwargs({"return_full_text": False, "max_new_tokens": 3}) == {
        "max_new_tokens": 3
    }
    assert from_pipeline_kwargs({"stop_sequence": "x"}) == {"stop": "x"}
    with pytest.raises(ValueError, match="`return_full_text` must be False"):
        from_pipeline_kwargs({"return_full_text": True})


def test_from_model_id_takes_the_pipelines_arguments() -> None:
    llm = LLMA.from_model_id(
        "m",
        "text-generation",
        device=-1,
        model_kwargs={"torch_dtype": torch.float32, "token": "t", "low_cpu_mem_usage": True},
        pipeline_kwargs={"max_new_tokens": 4, "repetition_penalty": 1.1},
        batch_size=8,
    )
    assert llm._loading() == {
        "dtype": "float32",
        "device": "cpu",
        "token": "t",
        "model_kwargs": {"low_cpu_mem_usage": True},
    }
    assert llm.max_tokens == 4
    assert llm.options == {"repetition_penalty": 1.1}


def test_from_model_id_takes_the_chat_models_arguments() -> None:
    """Sampling stands beside the other arguments of `ChatHuggingFace.from_model_id`."""
    llm = ChatLLMA.from_model_id("m", backend="pipeline", temperature=0.2, max_tokens=9, device=1)
    assert (llm.model, llm.temperature, llm.max_tokens, llm.device) == ("m", 0.2, 9, 1)


@pytest.mark.parametrize(("name", "value"), [("task", "summarization"), ("backend", "openvino")])
def test_from_model_id_refuses_what_it_cannot_do(name: str, value: str) -> None:
    for cls in (ChatLLMA, LLMA):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            cls.from_model_id("m", **{"task": "text-generation", name: value})


async def test_a_call_with_options_is_not_cached(decoder: ProbeDecoder) -> None:
    """Core keeps the texts of a text model under its fields, the prompt and the stop strings."""
    llm = text_model(decoder, cache=InMemoryCache())
    for answer in ("first", "second"):
        decoder.script = answer
        assert llm.invoke("hello") == await llm.ainvoke("hello") == "first"
        assert llm.invoke("hello", max_tokens=2) == answer
        assert await llm.ainvoke("hello", max_tokens=2) == answer
        assert llm.batch(["hello"], config={"tags": ["a"]}) == ["first"]
        assert llm.batch(["hello"], temperature=0) == [answer]
    assert llm.invoke("hello", stop=["x"]) == "second"
    decoder.script = "third"
    assert llm.invoke("hello", stop=["x"]) == "second"


@pytest.mark.parametrize(
    "field",
    [
        {"tokenizer": "t"},
        {"tokenizer_kwargs": {"use_fast": False}},
        {"model_kwargs": {"variant": "fp16"}},
        {"quantization_config": {"load_in_4bit": True}},
    ],
    ids=str,
)
def test_caches_tell_models_apart(decoder: ProbeDecoder, field: dict[str, Any]) -> None:
    for model in (text_model, chat):
        cache, decoder.script = InMemoryCache(), "first"
        assert _said(model(decoder, cache=cache)) == "first"
        decoder.script = "second"
        assert _said(model(decoder, cache=cache, **field)) == "second"
        assert _said(model(decoder, cache=cache)) == "first"


def _said(llm: Any) -> str:
    answer = llm.invoke("hello")
    return answer if isinstance(answer, str) else str(answer.content)


def test_caches_tell_loaded_objects_apart() -> None:
    """Two of one name are two models, as one that was tuned and the one it was loaded as."""
    tuned, base = ProbeDecoder("tuned"), ProbeDecoder("base")
    for model, kind in ((text_model, LLMA), (chat, ChatLLMA)):
        cache = InMemoryCache()
        assert [_said(model(each, cache=cache)) for each in (tuned, base)] == ["tuned", "base"]
        tuned.script = "tuned again"
        assert _said(model(tuned, cache=cache)) == "tuned"
        tuned.script = "tuned"
        llm = model(tuned)
        keys = {_key(llm.model_copy(update={"model": name})) for name in ("a", "b")}
        assert keys == {_key(kind(model=name)) for name in ("a", "b")}


@pytest.mark.parametrize("kind", [ChatLLMA, LLMA])
def test_caches_tell_quantisations_apart(kind: Any) -> None:
    """Core's own key of chat models says of such an object only that there is one."""
    told = [QuantoConfig(weights=weights) for weights in ("int4", "int8", "int8")]
    keys = [_key(kind(model="m", quantization_config=config)) for config in told]
    assert keys[0] != keys[1] == keys[2]


def _key(llm: ChatLLMA | LLMA) -> str:
    """Return what core's caches know a model by."""
    return llm._get_llm_string() if isinstance(llm, ChatLLMA) else str(llm.dict())


GREEDY = {"do_sample": False}
WARM = {"do_sample": True, "temperature": 0.9}
PIPELINE = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 7, "max_time": 9}


@pytest.mark.parametrize(
    ("pipeline", "fields", "call", "expected"),
    [
        (PIPELINE, {}, {}, {"do_sample": True, "temperature": 0.7, "top_k": 5}),
        (PIPELINE, {"temperature": 0}, {}, GREEDY),
        (PIPELINE, {}, {"temperature": 0}, GREEDY),
        (PIPELINE, {}, GREEDY, GREEDY),
        (PIPELINE, {"options": GREEDY}, {}, GREEDY),
        (PIPELINE, {"temperature": 0.9, "top_k": 3}, {}, WARM | {"top_k": 3}),
        (PIPELINE, {"temperature": 0}, {"temperature": 0.9}, WARM | {"top_k": 5}),
        ({"do_sample": True}, {"temperature": 0}, {}, GREEDY),
        (GREEDY, {}, {}, GREEDY),
        (GREEDY, {"temperature": 0.9}, {}, WARM),
        (GREEDY, {"temperature": 0.9, "options": GREEDY}, {}, GREEDY),
        (GREEDY, {"options": {"do_sample": True}}, {}, {"do_sample": True}),
        (GREEDY, {}, {"temperature": 0.9, "seed": 3}, WARM | {"seed": 3}),
        (GREEDY, {"seed": 3}, {"do_sample": True}, {"do_sample": True, "seed": 3}),
    ],
)
def test_the_more_explicit_temperature_decides(
    pipeline: dict[str, Any], fields: dict[str, Any], call: dict[str, Any], expected: dict[str, Any]
) -> None:
    llm = ChatLLMA.from_model_id("m", pipeline_kwargs=pipeline, **fields)
    options = dict(llm._generation_options(None, call))
    options = {name: value for name, value in options.items() if not name.startswith("max_")}
    assert options == expected


def test_a_calls_pipeline_arguments_are_a_layer_of_their_own(decoder: ProbeDecoder) -> None:
    llm = text_model(decoder)
    for pipeline, call, expected in (
        (GREEDY, {"temperature": 0.9}, WARM),
        (PIPELINE, {"temperature": 0}, GREEDY),
        (GREEDY, {"do_sample": True}, {"do_sample": True}),
    ):
        llm.bind(pipeline_kwargs=pipeline).invoke("hello", **call)
        options = decoder.requests[-1].options
        told = ("do_sample", "temperature")
        assert {name: options[name] for name in told if name in options} == expected


def test_a_pipelines_arguments_become_fields() -> None:
    """Then another value of the field replaces them, under either of its names."""
    told = PIPELINE | {"stop_sequence": "x", "seed": 1, "top_p": 0.5, "min_p": 0.1}
    llm = LLMA.from_model_id("m", pipeline_kwargs=told)
    assert (llm.temperature, llm.top_k, llm.top_p, llm.seed) == (0.7, 5, 0.5, 1)
    assert (llm.max_tokens, llm.timeout, llm.stop) == (7, 9, ["x"])
    assert llm.options == {"min_p": 0.1}
    own = {"max_new_tokens": 3, "stop_sequences": ["y"], "options": {"typical_p": 0.2}}
    llm = LLMA.from_model_id("m", pipeline_kwargs=told, **own)
    assert (llm.max_tokens, llm.stop) == (3, ["y"])
    assert llm.options == {"min_p": 0.1, "typical_p": 0.2}


def test_a_configured_temperature_decides() -> None:
    llm = ChatLLMA.from_model_id("m", pipeline_kwargs=PIPELINE)
    told = llm.configurable_fields(temperature=ConfigurableField(id="t"))
    made, _ = told.prepare({"configurable": {"t": 0}})  # type: ignore[attr-defined]  # not in `Runnable`
    assert made._generation_options(None, {})["do_sample"] is False


def test_calls_take_what_a_pipeline_takes(decoder: ProbeDecoder) -> None:
    """Chains of `HuggingFacePipeline` are full of `bind(skip_prompt=True)`."""
    llm = text_model(decoder, temperature=0)
    bound = llm.bind(skip_prompt=True, pipeline_kwargs={"max_new_tokens": 3, "pad_token_id": 0})
    bound.invoke("hello")
    options = decoder.requests[0].options
    assert options["max_new_tokens"] == 3
    assert options.keys() == {"draft", "namespace", "do_sample", "max_new_tokens"}
    with pytest.raises(ValueError, match="`skip_prompt` must be True or unset, got False"):
        llm.invoke("hello", skip_prompt=False)
