"""Tool calls in a model's text: read in every common notation, and never shown half."""

import itertools
import json

import pytest

from llma_rag import WrittenCall, read_tool_calls, text_before_calls

CALL = {"name": "add", "arguments": {"a": 1}}
JSON = json.dumps(CALL)
ADD = WrittenCall("add", {"a": 1})


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"<tool_call>{JSON}</tool_call>", ""),
        (f"Let me look.\n<tool_call>\n{JSON}\n</tool_call>\n", "Let me look."),
        (f"<tool_call>{JSON}", ""),
        (JSON, ""),
        (f"  {JSON}\n", ""),
        (f"[{JSON}]", ""),
        (f"[TOOL_CALLS] [{JSON}]", ""),
        (f"[TOOL_CALLS][{JSON}]", ""),
        (f"```json\n{JSON}\n```", ""),
        ('{"name": "add", "parameters": {"a": 1}}', ""),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', ""),
    ],
)
def test_a_call_is_read(text, content):
    answer = read_tool_calls(text, {"add"})
    assert (answer.content, answer.calls, answer.unreadable) == (content, (ADD,), ())


def test_several_calls():
    first, second = WrittenCall("add", {}), WrittenCall("add", {"b": 2})
    bare = '[{"name": "add"}, {"name": "add", "arguments": {"b": 2}}]'
    assert read_tool_calls(bare, {"add"}).calls == (first, second)
    tagged = f"<tool_call>{JSON}</tool_call> and <tool_call>{JSON}</tool_call>"
    assert read_tool_calls(tagged, {"add"}).calls == (ADD, ADD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "plain words",
        f"[TOOL_CALLS] words, {JSON}",
        '{"name": "unknown", "arguments": {}}',
        '{"name": "add", "arguments": {}, "more": 1}',
        '{"name": ["add"]}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": "{"}',
        f'[{JSON}, {{"name": "unknown"}}]',
        "[]",
        "{broken",
    ],
)
def test_text_stays_text(text):
    answer = read_tool_calls(text, {"add"})
    assert (answer.content, answer.calls, answer.unreadable) == (text, (), ())


def test_without_tools_nothing_is_read():
    assert read_tool_calls(JSON, ()).content == JSON


@pytest.mark.parametrize(
    "body", ["{broken", "[]", '{"arguments": {}}', '{"name": "a", "arguments": [1]}']
)
def test_a_broken_call_is_reported(body):
    answer = read_tool_calls(f"<tool_call>{body}</tool_call>", {"add"})
    assert not answer.calls
    assert [one.body for one in answer.unreadable] == [body]


@pytest.mark.parametrize(
    "text",
    [
        f"Let me < look <tool> here.<tool_call>{JSON}</tool_call> after",
        "plain words, a < b and <tool but no call",
        JSON,
        f"  [TOOL_CALLS][{JSON}]",
        "   spaces before ```code```",
        "``",
    ],
)
def test_what_is_shown_only_grows_and_stays(text):
    """A stream shows it as it grows, and cannot take it back."""
    shown = [text_before_calls(text[:size]) for size in range(len(text) + 1)]
    for before, after in itertools.pairwise(shown):
        assert after.startswith(before)
    assert read_tool_calls(text, {"add"}).content.startswith(shown[-1])
