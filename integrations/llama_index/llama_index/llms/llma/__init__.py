"""LlamaIndex LLM that copies from retrieved nodes without changing the answer."""

from llama_index.llms.llma.base import LLMA
from llama_index.llms.llma.citations import Citation, citations_of, results_of
from llama_index.llms.llma.explicit import references
from llama_index.llms.llma.function_calling import LLMAFunctionCalling

__all__ = ["Citation", "LLMA", "LLMAFunctionCalling", "citations_of", "references", "results_of"]
