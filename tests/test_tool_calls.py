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
        (f"<think>{JSON}?</think>\n{JSON}", f"<think>{JSON}?</think>"),
        (f"<think><tool_call></think><tool_call>{JSON}", "<think><tool_call></think>"),
        (f"A <tool_call> it is.\n<tool_call>{JSON}</tool_call>", "A <tool_call> it is."),
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


@pytest.mark.parametrize("query", ["<tool_call>", "</tool_call>", "a</think>b", "```"])
@pytest.mark.parametrize("thoughts", ["", "<think>Hm.</think>"])
def test_arguments_may_hold_any_tag(query, thoughts):
    arguments = {"query": query}
    text = thoughts + json.dumps({"name": "add", "arguments": arguments})
    answer = read_tool_calls(text, {"add"})
    assert (answer.calls, answer.unreadable) == ((WrittenCall("add", arguments),), ())
    assert answer.content.startswith(text_before_calls(text))


def test_a_call_ends_where_its_json_does():
    body = json.dumps({"name": "add", "arguments": {"a": "</tool_call> and <tool_call>{"}})
    answer = read_tool_calls(f"<tool_call>{body}</tool_call><tool_call>{JSON} ", {"add"})
    assert answer.calls == (WrittenCall("add", {"a": "</tool_call> and <tool_call>{"}), ADD)
    assert (answer.content, answer.unreadable) == ("", ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "Models write <tool_call> before a call. The sum is 3.",
        "An empty <tool_call></tool_call> is none, nor is <tool_call>",
        f"<think>Is it <tool_call>{JSON}</tool_call>? No.</think>The sum is 3.",
        f"<tool_call>{JSON}</tool_call>, I thought.</think> The sum is 3.",
        f"<think>Hm.</think>It is {JSON}",
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
    "body",
    [
        "{broken",
        "[]",
        "add(1)",
        '{"arguments": {}}',
        '{"name": "a", "arguments": [1]}',
        '{"name": null, "arguments": {}}',
        f"{JSON}}}",
        f"{JSON} {JSON}",
        '{"a":' * 10_000,
    ],
)
@pytest.mark.parametrize("end", ["</tool_call>", f"</tool_call><tool_call>{JSON}"])
def test_a_broken_call_is_reported(body, end):
    answer = read_tool_calls(f"Look: <tool_call>{body}{end}", {"add"})
    assert answer.content == "Look:"
    assert [one.body for one in answer.unreadable] == [body]
    assert answer.calls == (ADD,) * end.count(JSON)


def test_a_call_that_was_cut_is_reported():
    answer = read_tool_calls(f"Look: <tool_call>{JSON[:8]}", {"add"})
    assert (answer.content, answer.calls) == ("Look:", ())
    assert [one.body for one in answer.unreadable] == [JSON[:8]]


@pytest.mark.parametrize(
    "text",
    [
        f"Let me < look <tool> here.<tool_call>{JSON}</tool_call> after",
        "plain words, a < b and <tool but no call",
        JSON,
        f"  [TOOL_CALLS][{JSON}]",
        "   spaces before ```code```",
        "``",
        f"<think>{JSON}<tool_call>{JSON}</tool_call> no</think> So: <tool_call>{JSON}",
        f"<think>a</think>{JSON}",
        "A <tool_call> it is </tool_call> and <tool_call> too",
    ],
)
def test_what_is_shown_only_grows_and_stays(text):
    """A stream shows it as it grows, and cannot take it back."""
    shown = [text_before_calls(text[:size]) for size in range(len(text) + 1)]
    for before, after in itertools.pairwise(shown):
        assert after.startswith(before)
    assert read_tool_calls(text, {"add"}).content.startswith(shown[-1])
