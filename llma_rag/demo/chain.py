"""Build the LangChain chain of the demo: retriever | prompt | model | parser."""

from collections.abc import Iterable, Sequence
from typing import Any

import faiss
from langchain_classic.chains.question_answering.stuff_prompt import CHAT_PROMPT
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import VectorStore

from llma_rag.demo.embedding import HashingEmbedding
from llma_rag.demo.passages import Passage, searched_text


class HashingEmbeddings(Embeddings):
    """The hashing embedding under LangChain's interface."""

    def __init__(self, embedding: HashingEmbedding) -> None:
        self.embedding = embedding

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed several texts."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Embed one text."""
        return [float(value) for value in self.embedding.embed(text)]


class FaissStore(VectorStore):
    """Documents searched by the inner product of their embeddings, in a flat FAISS index."""

    def __init__(self, embedding: HashingEmbeddings) -> None:
        """Start with no documents."""
        self._embedding = embedding
        self._index = faiss.IndexFlatIP(embedding.embedding.dimensions)
        self._documents: list[Document] = []

    @classmethod
    def from_passages(cls, passages: Sequence[Passage]) -> "FaissStore":
        """Index passages; each becomes a document that names its source."""
        searched = [searched_text(passage) for passage in passages]
        store = cls(HashingEmbeddings(HashingEmbedding(searched)))
        store._add(
            [
                Document(
                    page_content=passage.text,
                    metadata={"source": passage.source, "start_index": passage.start},
                )
                for passage in passages
            ],
            searched,
        )
        return store

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> "FaissStore":
        """Index texts as `VectorStore` asks; `embedding` must be a `HashingEmbeddings`."""
        if not isinstance(embedding, HashingEmbeddings):
            raise TypeError(
                "`embedding` must be a `HashingEmbeddings`, got "
                f"`{type(embedding).__name__}`; use a vector store of your framework instead."
            )
        store = cls(embedding)
        named = metadatas or [{} for _ in texts]
        store._add(
            [
                Document(page_content=text, metadata=metadata)
                for text, metadata in zip(texts, named, strict=True)
            ],
            texts,
        )
        return store

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the `k` documents nearest to a query, best first."""
        vectors = self._embedding.embedding.embed_all([query])
        _, found = self._index.search(vectors, min(k, len(self._documents)))
        return [self._documents[place] for place in found[0]]

    def _add(self, documents: Sequence[Document], searched: Sequence[str]) -> None:
        self._index.add(self._embedding.embedding.embed_all(searched))
        self._documents.extend(documents)


def format_docs(documents: Iterable[Document]) -> str:
    """Join the texts of documents as they stand in the prompt."""
    return "\n\n".join(document.page_content for document in documents)


def build_chain(
    llm: BaseLanguageModel[Any], passages: Sequence[Passage], *, k: int
) -> Runnable[str, str]:
    """Return a chain from question to answer over LangChain's own question-answering prompt.

    Args:
        llm: The chat model or text model.
        passages: What is indexed, at least one.
        k: How many passages each question retrieves.
    """
    retriever = FaissStore.from_passages(passages).as_retriever(search_kwargs={"k": k})
    return (
        {"context": retriever | format_docs, "question": RunnablePassthrough()}
        | CHAT_PROMPT
        | llm
        | StrOutputParser()
    )
