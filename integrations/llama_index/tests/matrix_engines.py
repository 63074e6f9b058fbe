"""Rows of the capture matrix: query engines, synthesizers, retrievers, postprocessors."""

import asyncio
import threading
from typing import Any

from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.evaluation import RelevancyEvaluator
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.node_parser import (
    HierarchicalNodeParser,
    SentenceWindowNodeParser,
    TokenTextSplitter,
    get_leaf_nodes,
)
from llama_index.core.postprocessor import MetadataReplacementPostProcessor, SimilarityPostprocessor
from llama_index.core.query_engine import (
    CitationQueryEngine,
    CustomQueryEngine,
    FLAREInstructQueryEngine,
    RetrieverQueryEngine,
    RetryQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import AutoMergingRetriever, QueryFusionRetriever
from llama_index.core.schema import NodeWithScore
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import QueryEngineTool, ToolMetadata

from integrations.llama_index.tests.matrix import FAISS, INDEX, LONG, QUESTION, last, row
from integrations.llama_index.tests.probes import (
    NUMBERS,
    WORDS,
    HashEmbedding,
    adrain,
    corpus,
    drain,
    ids,
)

WINDOW = 1800


def engine(llm, index=INDEX, top_k=2, **options):
    return index.as_query_engine(llm=llm, similarity_top_k=top_k, **options)


def everything(llm, response):
    return ids(response.source_nodes), llm.calls


def ending(llm, response):
    return ids(response.source_nodes), last(llm)


def add_mode(mode):
    def ask(llm, **options):
        return engine(llm, LONG, 4, response_mode=mode, **options).query(QUESTION)

    for chatty in (False, True):
        named = f"{mode} sync{' chat-model' if chatty else ''}"
        row(named, chatty=chatty, window=WINDOW)(lambda llm: everything(llm, ask(llm)))

    @row(f"{mode} async", window=WINDOW)
    async def _(llm):
        asked = engine(llm, LONG, 4, response_mode=mode)
        return everything(llm, await asked.aquery(QUESTION))

    if "accumulate" in mode or mode == "tree_summarize":

        @row(f"{mode} sync use_async", window=WINDOW)
        def _(llm):
            return everything(llm, ask(llm, use_async=True))

        @row(f"{mode} sync use_async inside a running loop", window=WINDOW)
        async def _(llm):
            return everything(llm, ask(llm, use_async=True))

    if "accumulate" not in mode:
        add_streaming(mode)


def add_streaming(mode):
    def streamed(llm):
        response = engine(llm, LONG, 4, response_mode=mode, streaming=True).query(QUESTION)
        drain(response)
        return everything(llm, response)

    row(f"{mode} streaming", window=WINDOW)(streamed)
    row(f"{mode} streaming chat-model", chatty=True, window=WINDOW)(streamed)

    @row(f"{mode} streaming async", window=WINDOW)
    async def _(llm):
        asked = engine(llm, LONG, 4, response_mode=mode, streaming=True)
        response = await asked.aquery(QUESTION)
        await adrain(response)
        return everything(llm, response)


for each in (
    "compact",
    "refine",
    "tree_summarize",
    "simple_summarize",
    "accumulate",
    "compact_accumulate",
):
    add_mode(each)


@row("faiss compact")
def _(llm):
    return everything(llm, engine(llm, FAISS, 3).query(QUESTION))


@row("faiss compact streaming async")
async def _(llm):
    response = await engine(llm, FAISS, 3, streaming=True).aquery(QUESTION)
    await adrain(response)
    return everything(llm, response)


@row("streaming: the first of two answers is read after the second was made")
def _(llm):
    asked = engine(llm, streaming=True)
    first, _second = asked.query(QUESTION), asked.query("theta topic seven")
    drain(first)
    # Up to 0.13 the model is called before the answer is read.
    return ids(first.source_nodes), [call for call in llm.calls if QUESTION in call.prompt]


@row("streaming: read in another thread")
def _(llm):
    response = engine(llm, streaming=True).query(QUESTION)
    thread = threading.Thread(target=drain, args=(response,))
    thread.start()
    thread.join()
    return everything(llm, response)


@row("streaming: str(response)")
def _(llm):
    response = engine(llm, streaming=True).query(QUESTION)
    str(response)
    return everything(llm, response)


@row("streaming async: read in another task")
async def _(llm):
    response = await engine(llm, streaming=True).aquery(QUESTION)
    await asyncio.create_task(adrain(response))
    return everything(llm, response)


@row("streaming: closed after one word")
def _(llm):
    response = engine(llm, streaming=True).query(QUESTION)
    next(response.response_gen)
    response.response_gen.close()
    return everything(llm, response)


@row("CitationQueryEngine")
def _(llm):
    asked = CitationQueryEngine.from_args(
        INDEX,
        llm=llm,
        similarity_top_k=3,
        text_splitter=TokenTextSplitter(chunk_size=64, chunk_overlap=0),
    )
    return everything(llm, asked.query(QUESTION))


@row("CitationQueryEngine streaming async")
async def _(llm):
    asked = CitationQueryEngine.from_args(
        INDEX, llm=llm, similarity_top_k=3, text_splitter=TokenTextSplitter(), streaming=True
    )
    response = await asked.aquery(QUESTION)
    await adrain(response)
    return everything(llm, response)


def sub_questions(llm, use_async):
    tools = [
        QueryEngineTool(engine(llm, index), ToolMetadata(name=f"t{i}", description=f"d{i}"))
        for i, index in enumerate((INDEX, FAISS))
    ]
    return SubQuestionQueryEngine.from_defaults(
        tools,
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        response_synthesizer=get_response_synthesizer(llm=llm, use_async=use_async),
        use_async=use_async,
        verbose=False,
    )


def original(llm, response):
    """The retrieved nodes, without the nodes that hold a sub-question and its answer."""
    return {node for node in ids(response.source_nodes) if len(node) < 4}, last(llm)


@row("SubQuestionQueryEngine, final call")
def _(llm):
    return original(llm, sub_questions(llm, False).query(QUESTION))


@row("SubQuestionQueryEngine use_async, final call")
def _(llm):
    return original(llm, sub_questions(llm, True).query(QUESTION))


@row("SubQuestionQueryEngine async, final call")
async def _(llm):
    return original(llm, await sub_questions(llm, True).aquery(QUESTION))


@row("RouterQueryEngine, final call")
def _(llm):
    tools = [
        QueryEngineTool.from_defaults(engine(llm, index), description=name)
        for name, index in (("a", INDEX), ("b", FAISS))
    ]
    asked = RouterQueryEngine.from_defaults(
        tools, llm=llm, selector=LLMSingleSelector.from_defaults(llm=llm)
    )
    return ending(llm, asked.query(QUESTION))


@row("RetryQueryEngine, two tries", short=6)
def _(llm):
    Settings.llm = llm
    try:
        response = RetryQueryEngine(engine(llm), RelevancyEvaluator(llm=llm)).query(QUESTION)
    finally:
        Settings._llm = None
    return everything(llm, response)


@row("TransformQueryEngine HyDE, final call")
def _(llm):
    asked = TransformQueryEngine(engine(llm), HyDEQueryTransform(llm=llm))
    return ending(llm, asked.query(QUESTION))


def fusion(llm, use_async):
    retrievers = [index.as_retriever(similarity_top_k=2) for index in (INDEX, FAISS)]
    retriever = QueryFusionRetriever(
        retrievers, llm=llm, num_queries=3, similarity_top_k=4, use_async=use_async
    )
    return RetrieverQueryEngine.from_args(retriever, llm=llm)


@row("QueryFusionRetriever, final call")
def _(llm):
    return ending(llm, fusion(llm, False).query(QUESTION))


@row("QueryFusionRetriever use_async, final call")
def _(llm):
    return ending(llm, fusion(llm, True).query(QUESTION))


@row("QueryFusionRetriever async, final call")
async def _(llm):
    return ending(llm, await fusion(llm, True).aquery(QUESTION))


def windowed():
    def sentence(i, d):
        return f"Sentence {i} {WORDS[i % 10]} {NUMBERS[i % 10]} talks about d{d}s{i} thing."

    def split(text):
        return [part + "." for part in text.split(".") if part.strip()]

    documents = [
        Document(text=" ".join(sentence(i, d) for i in range(12)), id_=f"d{d}") for d in range(3)
    ]
    parser = SentenceWindowNodeParser.from_defaults(window_size=2, sentence_splitter=split)
    nodes = parser.get_nodes_from_documents(documents)
    return VectorStoreIndex(nodes, embed_model=HashEmbedding())


WINDOWED = windowed()


@row("SentenceWindow with MetadataReplacement")
def _(llm):
    replace = MetadataReplacementPostProcessor("window")
    asked = engine(llm, WINDOWED, node_postprocessors=[replace])
    response = asked.query("alpha zero talks")
    window = response.source_nodes[0].node.get_content()
    assert all(call.nodes[0].text == window for call in llm.calls), "the window comes first"
    assert all(len(call.nodes) > len(call.seen) for call in llm.calls), "the sentence is kept"
    return everything(llm, response)


@row("SentenceWindow with MetadataReplacement streaming async")
async def _(llm):
    replace = MetadataReplacementPostProcessor("window")
    asked = engine(llm, WINDOWED, streaming=True, node_postprocessors=[replace])
    response = await asked.aquery("alpha zero talks")
    await adrain(response)
    return everything(llm, response)


@row("AutoMergingRetriever")
def _(llm):
    documents = [
        Document(text=" ".join(f"para {i} {WORDS[i % 10]} d{d}x{i}." for i in range(120)))
        for d in range(2)
    ]
    splitters = {f"{size}": TokenTextSplitter(chunk_size=size) for size in (512, 128)}
    parser = HierarchicalNodeParser.from_defaults(
        node_parser_ids=list(splitters), node_parser_map=splitters
    )
    nodes = parser.get_nodes_from_documents(documents)
    store = SimpleDocumentStore()
    store.add_documents(nodes)
    context = StorageContext.from_defaults(docstore=store)
    index = VectorStoreIndex(
        get_leaf_nodes(nodes), storage_context=context, embed_model=HashEmbedding()
    )
    retriever = AutoMergingRetriever(index.as_retriever(similarity_top_k=14), context)
    asked = RetrieverQueryEngine.from_args(retriever, llm=llm)
    return everything(llm, asked.query("para alpha d0x0"))


@row("SimilarityPostprocessor")
def _(llm):
    cutoff = SimilarityPostprocessor(similarity_cutoff=-1.0)
    return ending(llm, engine(llm, top_k=4, node_postprocessors=[cutoff]).query(QUESTION))


class OwnRetriever(BaseRetriever):
    def _retrieve(self, query_bundle: Any) -> Any:
        return [NodeWithScore(node=node, score=1.0) for node in corpus("my", 2)]


@row("own retriever in a RetrieverQueryEngine")
def _(llm):
    return everything(llm, RetrieverQueryEngine.from_args(OwnRetriever(), llm=llm).query(QUESTION))


class StringEngine(CustomQueryEngine):
    """The pattern of LlamaIndex's documentation: retrieve, then complete."""

    retriever: Any = None
    llm: Any = None

    def custom_query(self, query_str: str) -> Any:
        nodes = self.retriever.retrieve(query_str)
        context = "\n\n".join(node.node.get_content() for node in nodes)
        return str(self.llm.complete("Context: " + context))


def truth(top_k=2, question=QUESTION):
    return ids(INDEX.as_retriever(similarity_top_k=top_k).retrieve(question))


@row("CustomQueryEngine: retrieve, then complete")
def _(llm):
    StringEngine(retriever=INDEX.as_retriever(similarity_top_k=2), llm=llm).query(QUESTION)
    return truth(), llm.calls


@row("CustomQueryEngine async")
async def _(llm):
    asked = StringEngine(retriever=INDEX.as_retriever(similarity_top_k=2), llm=llm)
    await asked.aquery(QUESTION)
    return truth(), llm.calls


@row("FLAREInstructQueryEngine, its inner engine")
def _(llm):
    FLAREInstructQueryEngine(engine(llm), llm=llm, max_iterations=1).query(QUESTION)
    return truth(), last(llm)


class Structured(BaseModel):
    answer: str


@row("structured answer with output_cls")
def _(llm):
    response = engine(llm, output_cls=Structured).query(QUESTION)
    assert response.response.answer == "copied"
    return truth(), llm.calls
