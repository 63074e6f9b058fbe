"""A decoder that says given texts, and tools for it to call."""

from dataclasses import replace

from llama_index.core.tools import FunctionTool

from integrations.llama_index.tests.scripted import ScriptedDecoder
from llama_index.llms.llma import LLMAFunctionCalling

TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "; {% endfor %}assistant: "
)
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


STRICT = (
    "{% for m in messages %}{% if m.tool_calls is defined %}[TOOL_CALLS] ["
    "{% for c in m.tool_calls %}{% if c.id is not defined or c.id|length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}{{ c.function | tojson }}, {{ c.id }}{% endfor %}]"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id|length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    '{% endif %}[TOOL_RESULTS] {"content": "{{ m.content }}", "call_id": "{{ m.tool_call_id }}"}'
    "{% else %}[{{ m.role }}] {{ m.content }}{% endif %}{% endfor %}"
    "{% if tools is not none %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}"
)
"""Mistral's, shortened: it checks ids, and shows an empty list of tools."""


class SayingDecoder(ScriptedDecoder):
    """Says one text after the other, whatever it is asked."""

    def __init__(self, *texts, finish_reason="stop"):
        super().__init__()
        self.tokenizer.chat_template = TEMPLATE
        self.texts = list(texts)
        self.finish_reason = finish_reason

    def generate(self, prompt, **arguments):
        result = super().generate(prompt, **arguments)
        text = self.texts.pop(0)
        return replace(
            result,
            text=text,
            token_ids=tuple(text.encode()),
            copied_spans=(),
            finish_reason=self.finish_reason,
        )


def make(*texts, finish_reason="stop"):
    return LLMAFunctionCalling(decoder=SayingDecoder(*texts, finish_reason=finish_reason))


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def now() -> str:
    """Tell the time."""
    return "noon"


TOOL = FunctionTool.from_defaults(add)
NOW = FunctionTool.from_defaults(now)


def prompts_of(llm):
    return [llm.decoder.tokenizer.decode(call.prompt[1:]) for call in llm.decoder.calls]
