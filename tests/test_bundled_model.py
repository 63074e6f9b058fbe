import json
import random
from pathlib import Path

import pytest
import torch
from langchain_core.messages import BaseMessage
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.train_bundled_model.attention import Guide
from examples.train_bundled_model.batches import Batch, make_batch
from examples.train_bundled_model.documents import Document, markdown_units
from examples.train_bundled_model.evaluate_demo import questions
from examples.train_bundled_model.examples import Example, ExampleMaker, Limits, WordChanger
from examples.train_bundled_model.prompts import CHAT_TEMPLATE, FORMATS, SPECIAL_TOKENS
from llma_rag.demo.questions import QUESTIONS

MODEL = Path(__file__).parents[1] / "llma_rag" / "demo" / "model"
ROLES = {"human": "user", "system": "system", "ai": "assistant"}


def rendered(messages: list[BaseMessage]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    turns = [{"role": ROLES[m.type], "content": m.content} for m in messages]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def trained(name: str) -> str:
    [prompt] = [item for item in FORMATS if item.name == name]
    return (prompt.head + prompt.tail).format(context="First.\n\nSecond.", question="What?")


def test_the_shipped_files_are_small_and_complete() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert names >= {
        "MODEL_CARD.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 16 * 2**20
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_shipped_chat_template_is_the_trained_one() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]


def test_the_chat_template_renders_every_role() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    turns = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "tool", "content": "found"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    expected = "<|bos|><|system|>Be brief.<|user|>Hi<|assistant|> Yes.<|end|><|system|>found"
    assert text == expected


def test_langchain_prompts_are_trained_as_shipped() -> None:
    prompts = pytest.importorskip("langchain_classic.chains.question_answering.stuff_prompt")
    filled = {"context": "First.\n\nSecond.", "question": "What?"}
    chat = rendered(prompts.CHAT_PROMPT.format_messages(**filled))
    assert trained("langchain-stuff-chat") == chat
    assert trained("langchain-stuff") == prompts.PROMPT.format(**filled)


def test_llama_index_prompts_are_trained_as_shipped() -> None:
    shipped = pytest.importorskip("llama_index.core.prompts.default_prompts")
    chat = pytest.importorskip("llama_index.core.prompts.chat_prompts")
    filled = {"context_str": "First.\n\nSecond.", "query_str": "What?"}
    assert trained("llamaindex-qa") == shipped.DEFAULT_TEXT_QA_PROMPT.format(**filled)
    assert trained("llamaindex-summary") == shipped.DEFAULT_TREE_SUMMARIZE_PROMPT.format(**filled)
    messages = [
        {"role": message.role.value, "content": message.content}
        for message in chat.CHAT_TEXT_QA_PROMPT.format_messages(**filled)
    ]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert trained("llamaindex-qa-chat") == text


def test_turns_of_a_training_example_do_not_see_one_another() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).eval()
    turns = [([10, 4], [11, 12, 1]), ([13, 4], [14, 1])]
    example = Example([0, 7, 8, 9], turns, "test", spans=[], answered=[(-1, -1), (-1, -1)])
    batch = make_batch([example])
    together = model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions
    ).logits[0]
    start = len(example.head)
    for number, (tail, answer) in enumerate(example.turns, start=1):
        alone = model(input_ids=torch.tensor([example.head + tail + answer])).logits[0]
        stop = start + len(tail) + len(answer)
        assert torch.allclose(together[start:stop], alone[len(example.head) :], atol=1e-5)
        assert batch.targets[0][batch.turns[0] == number].tolist() == answer
        start = stop


class TestGuides:
    """Two sentences, 10 11 12 and 20 21 22 12, and the question 21 12 5 about the second."""

    HEAD = (0, 10, 11, 12, 20, 21, 22, 12)
    TAIL, ANSWER = (3, 21, 12, 5), (20, 21, 22, 12, 1)

    def batch(self) -> Batch:
        turns = [(list(self.TAIL), list(self.ANSWER))]
        spans = [(1, 4), (4, 8)]
        return make_batch([Example(list(self.HEAD), turns, "test", spans, answered=[(4, 8)])])

    def test_a_passage_token_looks_at_its_own_sentence(self) -> None:
        assert self.batch().starts[0, :9].tolist() == [-1, 1, 1, 1, 4, 4, 4, 4, -1]

    def test_a_word_of_the_question_looks_at_its_equals(self) -> None:
        places = self.batch().places[0].nonzero().tolist()
        assert places == [[9, 5], [10, 3], [10, 7]]

    def test_only_words_of_the_answering_sentence_alone_are_evidence(self) -> None:
        batch = self.batch()
        assert batch.matched()[0].nonzero().flatten().tolist() == [9]
        assert batch.evidence[0].nonzero().tolist() == [[11, 9], [12, 9], [13, 9]]

    def test_an_answer_token_looks_at_the_token_that_comes_next(self) -> None:
        assert self.batch().copied[0, 11:].tolist() == [4, 5, 6, 7, -1, -1]

    def test_heads_that_look_there_lose_nothing_and_others_do(self) -> None:
        batch = self.batch()
        length = batch.ids.shape[1]

        def loss(*, away: int) -> dict[str, float]:
            guide = Guide(batch.starts, batch.spans, batch.places, batch.evidence, batch.copied)
            for layer in range(6):
                weights = torch.zeros(1, 8, length, length)
                for query in range(length):
                    weights[0, :, query, self.wanted(batch, layer, query) + away] = 1.0
                guide.add(layer, weights, 0)
            return {name: value.item() for name, value in guide.losses().items()}

        right, wrong = loss(away=0), loss(away=-1)
        for name in ("word", "question", "answer", "copy"):
            assert right[name] == pytest.approx(0.0, abs=1e-5)
            assert wrong[name] > 2.0

    def wanted(self, batch: Batch, layer: int, query: int) -> int:
        """One place at which a query of a layer may look."""
        if layer == 2 and batch.places[0, query].any():
            return int(batch.places[0, query].nonzero()[0])
        if layer == 3:
            return int(batch.spans[0, query, 0]) or 1
        if layer == 4 and batch.evidence[0, query].any():
            return int(batch.evidence[0, query].nonzero()[0])
        if layer == 5:
            return max(1, int(batch.copied[0, query]))
        return 1


def test_changed_words_are_the_same_wherever_they_stand() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    head, sentence = encoded("Context: "), encoded(" The boat left the harbour.")
    tail, answer = encoded("\nWho left the boat?"), [*sentence, 1]
    span = (len(head), len(head) + len(sentence))
    example = Example(head + sentence, [(tail, answer)], "test", [span], [span])
    changed = WordChanger(tokenizer, random.Random(0)).change(example, 1.0)
    [(changed_tail, changed_answer)] = changed.turns
    assert changed.head[slice(*span)] == changed_answer[:-1] != sentence
    assert changed.head[: span[0]] == head
    became = dict(zip(sentence, changed_answer, strict=False))
    assert changed_tail == [became.get(token, token) for token in tail] != tail
    assert tokenizer.decode(changed_answer).endswith(".")
    spaced = [tokenizer.id_to_token(token).startswith("\u0120") for token in answer]
    assert spaced == [tokenizer.id_to_token(token).startswith("\u0120") for token in changed_answer]


def test_an_answer_stands_in_the_prompt_where_its_span_says() -> None:
    """Token for token, also in the middle of a passage, where its first token holds a space."""
    texts = [file.read_text() for file in sorted((MODEL.parent / "documents").glob("*.md"))]
    documents = [Document("own", str(n), markdown_units(t)) for n, t in enumerate(texts)]
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    maker = ExampleMaker(documents, tokenizer, random.Random(0), shares={"own": 1.0})
    spaced = 0
    for _ in range(40):
        example = maker.draw(Limits((1, 2, 3), 900, 6, 2000))
        for (first, last), (_, answer) in zip(example.answered, example.turns, strict=True):
            if first >= 0:
                assert example.head[first:last] == answer[:-1]
                spaced += tokenizer.decode(answer)[0] == " "
    assert spaced > 40


def test_the_questions_about_the_demos_documents_have_their_answers_there() -> None:
    asked = [question.text for question in questions()]
    assert len(asked) == len(set(asked)) > 80
    assert {*QUESTIONS} <= {*questions()}
