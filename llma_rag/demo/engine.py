"""Build the LlamaIndex query engine of the demo, with the framework's default prompts."""

from collections.abc import Sequence

import faiss
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import LLM
from llama_index.core.schema import TextNode
from llama_index.vector_stores.faiss import FaissVectorStore

from llma_rag.demo.embedding import HashingEmbedding
from llma_rag.demo.passages import Passage, searched_text


class HashingEmbeddings(BaseEmbedding):
    """The hashing embedding under LlamaIndex's interface."""

    model_name: str = "llma-rag-hashing"
    _embedding: HashingEmbedding = PrivateAttr()

    def __init__(self, embedding: HashingEmbedding) -> None:
        """Wrap an embedding."""
        super().__init__()
        self._embedding = embedding

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(value) for value in self._embedding.embed(text)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def build_query_engine(llm: LLM, passages: Sequence[Passage], *, k: int) -> BaseQueryEngine:
    """Return a streaming query engine over a FAISS vector store.

    Args:
        llm: The language model.
        passages: What is indexed, at least one.
        k: How many passages each question retrieves.
    """
    embedding = HashingEmbedding(searched_text(passage) for passage in passages)
    store = FaissVectorStore(faiss_index=faiss.IndexFlatIP(embedding.dimensions))
    index = VectorStoreIndex(
        [_node(passage) for passage in passages],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=HashingEmbeddings(embedding),
    )
    return index.as_query_engine(llm=llm, streaming=True, similarity_top_k=k)


def _node(passage: Passage) -> TextNode:
    """The heading is searched but not shown to the model; the source is neither."""
    return TextNode(
        text=passage.text,
        metadata={"file_name": passage.source, "heading": passage.heading},
        excluded_embed_metadata_keys=["file_name"],
        excluded_llm_metadata_keys=["file_name", "heading"],
        metadata_template="{value}",
        text_template="{metadata_str}\n{content}",
    )
