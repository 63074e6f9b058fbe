import json

import pytest
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage

from integrations.llama_index.tests.saying import (
    STRICT,
    TOOL,
    make,
    prompts_of,
)
from llama_index.llms.llma.tool_calls import ToolCall, calls_in, with_calls


class OpenAIFunction(BaseModel):
    name: str
    arguments: str | dict


class OpenAICall(BaseModel):
    """A call as the OpenAI client returns it."""

    id: str
    type: str
    function: OpenAIFunction


def test_calls_and_results_enter_the_next_prompt():
    llm = make("5")
    call = with_calls(ChatMessage(role="assistant", content=""), [ToolCall("c", "add", {"a": 1})])
    result = ChatMessage(role="tool", content="5", additional_kwargs={"tool_call_id": "c"})
    llm.chat([ChatMessage(content="q"), call, result])
    assert prompts_of(llm)[0] == (
        'user: q; assistant: <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>; '
        "tool: 5; assistant: "
    )


NAMED = (
    "{# tools #}{% for m in messages %}[{{ m.role }}|{{ m.name }}|{{ m.tool_call_id }}]"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}"
)


def result_of(call_id, **more):
    return ChatMessage(
        role="tool", content="5", additional_kwargs={"tool_call_id": call_id, **more}
    )


@pytest.mark.parametrize(
    ("call", "result", "expected"),
    [
        (ToolCall("c", "add", {}), result_of("c"), "[tool|add|c]5"),
        (ToolCall("c", "add", {}), result_of("c", name="other"), "[tool|other|c]5"),
        (ToolCall("c", "add", {}), result_of("d"), "[tool||d]5"),
        (ToolCall("", "add", {}), result_of(""), "[tool||]5"),
    ],
)
def test_a_result_has_the_name_of_its_call(call, result, expected):
    llm = make("5")
    llm.decoder.tokenizer.chat_template = NAMED
    message = with_calls(ChatMessage(role="assistant", content=""), [call])
    llm.chat([ChatMessage(content="q", additional_kwargs={"name": "n"}), message, result])
    assert prompts_of(llm)[0].startswith("[user||]q[assistant||]")
    assert prompts_of(llm)[0].endswith(expected)


@pytest.mark.parametrize("as_object", [True, False])
@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_calls_in_openais_form_enter_the_next_prompt(arguments, as_object):
    llm = make("5")
    llm.decoder.tokenizer.chat_template = NAMED
    written = {
        "id": "c",
        "type": "function",
        "function": {"name": "add", "arguments": arguments},
    }
    kept = {"tool_calls": [OpenAICall(**written) if as_object else written, {"other": "form"}]}
    call = ChatMessage(role="assistant", content="", additional_kwargs=kept)
    llm.chat([ChatMessage(content="q"), call, result_of("c")])
    wanted = written | {"function": {"name": "add", "arguments": {"a": 1}}}
    assert prompts_of(llm)[0].endswith(f"[assistant||]{json.dumps(wanted)}[tool|add|c]5")


@pytest.mark.parametrize("arguments", ['{"a":1,"b":', "[1]", "1"])
def test_a_call_whose_arguments_are_no_object_is_refused(arguments):
    kept = {"tool_calls": [{"id": "c", "function": {"name": "add", "arguments": arguments}}]}
    message = ChatMessage(role="assistant", content="", additional_kwargs=kept)
    with pytest.raises(ValueError, match=r"call of `add` must be a JSON object, got '.*Correct"):
        make("5").chat([ChatMessage(content="q"), message])
    block = with_calls(ChatMessage(role="assistant", content=""), [ToolCall("c", "add", arguments)])
    with pytest.raises(ValueError, match="call of `add` must be a JSON object"):
        make("5").chat([ChatMessage(content="q"), block])


def test_no_tools_after_earlier_calls_are_no_empty_list():
    llm = make("5")
    llm.decoder.tokenizer.chat_template = STRICT
    call = with_calls(ChatMessage(role="assistant", content=""), [ToolCall("c" * 9, "add", {})])
    llm.chat_with_tools([TOOL], chat_history=[call], tool_choice="none")
    assert "AVAILABLE_TOOLS" not in prompts_of(llm)[0]


def test_calls_survive_this_version_of_the_framework():
    message = with_calls(ChatMessage(role="assistant", content="t"), [ToolCall("c", "n", {"a": 1})])
    again = ChatMessage.model_validate_json(message.model_dump_json())
    assert calls_in(again) == [ToolCall("c", "n", {"a": 1})]
    assert again.content == "t"
