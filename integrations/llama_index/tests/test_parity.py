"""The text is HuggingFaceLLM's, byte for byte, where that class is consistent with itself."""

from pathlib import Path

import pytest
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from transformers import AutoModelForCausalLM, AutoTokenizer

import llma_rag
from integrations.llama_index.tests.conftest import make_model, make_tokenizer
from integrations.llama_index.tests.probes import drain, make_index
from llama_index.llms.llma import LLMA, results_of

HuggingFaceLLM = pytest.importorskip(
    "llama_index.llms.huggingface", reason="compared with llama-index-llms-huggingface"
).HuggingFaceLLM

BUNDLED = Path(llma_rag.__file__).parent / "demo" / "model"
PROMPTS = ("hello", "héllo wörld", "The ferry leaves at nine. " * 8)
MESSAGES = [
    ChatMessage(role="system", content="be brief"),
    ChatMessage(role="user", content="héllo wörld"),
]


def tiny():
    return make_model(), make_tokenizer()


def bundled():
    if not (BUNDLED / "config.json").exists():
        pytest.skip("the bundled model is not built here")
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="float32").eval()
    return model, AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(params=[tiny, bundled], ids=lambda make: make.__name__, scope="module")
def loaded(request):
    return request.param()


@pytest.fixture
def both(loaded):
    def make(**options):
        model, tokenizer = loaded
        options = {"model": model, "tokenizer": tokenizer, "max_new_tokens": 24, **options}
        return HuggingFaceLLM(**options), LLMA(**options)

    return make


@pytest.mark.parametrize("prompt", PROMPTS)
def test_completions(both, prompt):
    theirs, ours = both(query_wrapper_prompt="<q>{query_str}</q>")
    assert ours.complete(prompt).text == theirs.complete(prompt).text
    streamed = "".join(chunk.delta for chunk in theirs.stream_complete(prompt))
    assert "".join(chunk.delta for chunk in ours.stream_complete(prompt)) == streamed


def test_completion_to_prompt(both):
    theirs, ours = both(completion_to_prompt=lambda text: f"[{text}]")
    assert ours.complete("hello").text == theirs.complete("hello").text


def test_chats(both):
    theirs, ours = both()
    if not ours.decoder.tokenizer.chat_template:
        pytest.skip("HuggingFaceLLM cannot chat with a tokenizer without a template")
    expected = theirs.chat(MESSAGES).message.content
    assert ours.chat(MESSAGES).message.content == expected
    assert "".join(chunk.delta for chunk in ours.stream_chat(MESSAGES)) == expected


def test_messages_to_prompt(both):
    theirs, ours = both(messages_to_prompt=lambda messages: f"<s>{messages[-1].content}")
    assert ours.chat(MESSAGES).message.content == theirs.chat(MESSAGES).message.content


@pytest.mark.parametrize("chatty", [False, True], ids=["completion", "chat-model"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate"])
def test_query_engines(both, mode, chatty):
    """The same prompts, references on one side only: the text must not tell them apart."""
    options = {"system_prompt": "Be exact.", "query_wrapper_prompt": "<q>{query_str}</q>"}
    theirs, ours = both(is_chat_model=chatty, messages_to_prompt=written, **options)
    index = make_index(size=3, length=12)
    answers = []
    for llm in (theirs, ours):
        asked = index.as_query_engine(llm=llm, similarity_top_k=2, response_mode=mode)
        answers.append(asked.query("alpha topic zero"))
    assert str(answers[0]) == str(answers[1])
    assert [n.node_id for n in answers[0].source_nodes] == [
        n.node_id for n in answers[1].source_nodes
    ]
    for result in results_of(answers[1]):
        # An answer of one token ends before references are indexed.
        assert result.stats.references_used == 2 or len(result.token_ids) == 1


def written(messages):
    return "<s>" + "\n".join(f"{m.role.value}: {m.content}" for m in messages) + "\nassistant: "


def test_streaming_query_engine_and_chat_engine(both):
    theirs, ours = both(is_chat_model=True, messages_to_prompt=written)
    index = make_index(size=3, length=12)
    texts = []
    for llm in (theirs, ours):
        engine = index.as_query_engine(llm=llm, similarity_top_k=2, streaming=True)
        chat = ContextChatEngine.from_defaults(
            retriever=index.as_retriever(similarity_top_k=2),
            llm=llm,
            memory=ChatMemoryBuffer.from_defaults(),
        )
        texts.append([drain(engine.query("alpha")), str(chat.chat("beta")), str(chat.chat("and?"))])
    assert texts[0] == texts[1]


def test_stopping_ids(both):
    theirs, ours = both()
    expected = theirs.complete("hello").text
    end = ours.decoder.generate("hello", max_new_tokens=8).token_ids[5]
    theirs, ours = both(stopping_ids=[end])
    text, stop = ours.complete("hello").text, ours.decoder.tokenizer.decode([end])
    assert len(text) < len(expected)
    assert theirs.complete("hello").text in (text, text + stop)  # we do not show the end
