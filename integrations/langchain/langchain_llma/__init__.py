"""LangChain chat model and text model that copy from retrieved documents."""

from langchain_llma.capture import no_capture
from langchain_llma.chat_models import ChatLLMA
from langchain_llma.llms import LLMA
from langchain_llma.stores import instrument_vectorstores

__version__ = "0.1.0"
__all__ = ["ChatLLMA", "LLMA", "__version__", "instrument_vectorstores", "no_capture"]
