"""Rows of the matrix: the chains and retrievers of langchain-classic."""

from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.stores import InMemoryStore
from langchain_core.vectorstores import InMemoryVectorStore

from integrations.langchain.tests.matrix import Bench, Expected, Rows, rag, run
from integrations.langchain.tests.probes import QUESTION, HashedWords, UserRetriever, of

ROWS = Rows("langchain_classic")
STUFF = ChatPromptTemplate.from_messages([("system", "C:\n{context}"), ("human", "{input}")])
BOTH = of("u1", "u2")[0] | of("u1", "u2")[1]


def _retrieval_chain(llm: Any, retriever: Any = None) -> Any:
    from langchain_classic.chains import create_retrieval_chain
    from langchain_classic.chains.combine_documents import create_stuff_documents_chain

    return create_retrieval_chain(
        retriever or UserRetriever(), create_stuff_documents_chain(llm, STUFF)
    )


def _retrieval_qa(llm: Any, kind: str = "stuff") -> Any:
    from langchain_classic.chains import RetrievalQA

    return RetrievalQA.from_chain_type(llm, retriever=UserRetriever(), chain_type=kind)


@ROWS.add("create_retrieval_chain: invoke")
def retrieval_chain(bench: Bench) -> Expected:
    _retrieval_chain(bench.chat()).invoke({"input": "u1"})
    return of("u1")


@ROWS.add("create_retrieval_chain: stream")
def retrieval_chain_stream(bench: Bench) -> Expected:
    list(_retrieval_chain(bench.chat(streams=True)).stream({"input": "u1"}))
    return of("u1")


@ROWS.add("create_retrieval_chain: abatch")
def retrieval_chain_abatch(bench: Bench) -> Expected:
    users = ["u1", "u2", "u3"]
    made = _retrieval_chain(bench.chat(streams=True))
    run(made.abatch([{"input": user} for user in users]))
    return of(*users)


@ROWS.add("create_retrieval_chain + history-aware retriever (two calls)")
def history_aware(bench: Bench) -> Expected:
    from langchain_classic.chains import create_history_aware_retriever

    condense = ChatPromptTemplate.from_messages(
        [("placeholder", "{chat_history}"), ("human", "{input}")]
    )
    retriever = create_history_aware_retriever(bench.chat("u1"), UserRetriever(), condense)
    made = _retrieval_chain(bench.chat(), retriever)
    made.invoke({"input": "uX", "chat_history": [HumanMessage("hi")]})
    return [frozenset(), *of("u1")]


@ROWS.add("RetrievalQA stuff")
def qa_stuff(bench: Bench) -> Expected:
    _retrieval_qa(bench.llm()).invoke({"query": "u1"})
    return of("u1")


@ROWS.add("RetrievalQA stuff, async chat")
def qa_stuff_async(bench: Bench) -> Expected:
    run(_retrieval_qa(bench.chat()).ainvoke({"query": "u1"}))
    return of("u1")


@ROWS.add("RetrievalQA map_reduce (two maps, one reduce)")
def qa_map_reduce(bench: Bench) -> Expected:
    _retrieval_qa(bench.llm(), "map_reduce").invoke({"query": "u1"})
    return of("u1") * 3


@ROWS.add("RetrievalQA map_reduce, async chat")
def qa_map_reduce_async(bench: Bench) -> Expected:
    run(_retrieval_qa(bench.chat(), "map_reduce").ainvoke({"query": "u1"}))
    return of("u1") * 3


@ROWS.add("RetrievalQA refine (two calls)")
def qa_refine(bench: Bench) -> Expected:
    _retrieval_qa(bench.llm(), "refine").invoke({"query": "u1"})
    return of("u1") * 2


@ROWS.add("RetrievalQA map_rerank (one generate of two prompts)")
def qa_map_rerank(bench: Bench) -> Expected:
    _retrieval_qa(bench.llm("ok\nScore: 90"), "map_rerank").invoke({"query": "u1"})
    return of("u1") * 2


@ROWS.add("ConversationalRetrievalChain (condense and answer)")
def conversational(bench: Bench) -> Expected:
    from langchain_classic.chains import ConversationalRetrievalChain

    made = ConversationalRetrievalChain.from_llm(bench.chat("u1"), retriever=UserRetriever())
    made.invoke({"question": "uX", "chat_history": [("a", "b")]})
    return [frozenset(), *of("u1")]


def _multi_query(bench: Bench) -> Any:
    from langchain_classic.retrievers import MultiQueryRetriever

    return rag(bench.chat(), MultiQueryRetriever.from_llm(UserRetriever(), bench.chat("u1\nu2")))


@ROWS.add("MultiQueryRetriever")
def multi_query(bench: Bench) -> Expected:
    _multi_query(bench).invoke("u0")
    return [frozenset(), BOTH]


@ROWS.add("MultiQueryRetriever, async")
def multi_query_async(bench: Bench) -> Expected:
    run(_multi_query(bench).ainvoke("u0"))
    return [frozenset(), BOTH]


@ROWS.add("EnsembleRetriever")
def ensemble(bench: Bench) -> Expected:
    from langchain_classic.retrievers import EnsembleRetriever

    stored = bench.store.as_retriever(search_kwargs={"k": 2})
    retriever = EnsembleRetriever(retrievers=[UserRetriever(), stored], weights=[0.5, 0.5])
    rag(bench.chat(), retriever).invoke(QUESTION)
    return [of(QUESTION)[0] | bench.found(QUESTION)]


@ROWS.add("ContextualCompressionRetriever with LLMChainExtractor (three calls)")
def extractor(bench: Bench) -> Expected:
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_classic.retrievers.document_compressors import LLMChainExtractor

    retriever = ContextualCompressionRetriever(
        base_compressor=LLMChainExtractor.from_llm(bench.chat("text number")),
        base_retriever=UserRetriever(),
    )
    rag(bench.chat(), retriever).invoke("u1")
    return of("u1") * 3


@ROWS.add("ContextualCompressionRetriever with EmbeddingsFilter, async", "langchain_community")
def embeddings_filter(bench: Bench) -> Expected:
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_classic.retrievers.document_compressors import EmbeddingsFilter

    retriever = ContextualCompressionRetriever(
        base_compressor=EmbeddingsFilter(embeddings=HashedWords(), similarity_threshold=-1),
        base_retriever=UserRetriever(),
    )
    run(rag(bench.chat(), retriever).ainvoke("u1"))
    return of("u1")


@ROWS.add("ParentDocumentRetriever: the parents", "langchain_text_splitters")
def parents(bench: Bench) -> Expected:
    from langchain_classic.retrievers import ParentDocumentRetriever
    from langchain_text_splitters import CharacterTextSplitter

    retriever = ParentDocumentRetriever(
        vectorstore=InMemoryVectorStore(HashedWords()),
        docstore=InMemoryStore(),
        child_splitter=CharacterTextSplitter(separator=". ", chunk_size=40, chunk_overlap=0),
    )
    text = "the contract ends after notice. the fox runs in the wood. rent is due on day one"
    retriever.add_documents([Document(page_content=text, metadata={"m": "P0"})])
    rag(bench.chat(), retriever).invoke("contract notice")
    return [frozenset({"P0"})]
