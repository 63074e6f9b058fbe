"""Streamed responses whose citations go with the whole response that they make of themselves."""

from typing import Any

from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)

from llama_index.llms.llma.citations import hand_on


class CitedStreamingResponse(StreamingResponse):
    """LlamaIndex's, with `get_response` handing its citations on."""

    def get_response(self) -> Response:
        """Return the whole response once it is read."""
        return hand_on(self, super().get_response())


class CitedAsyncStreamingResponse(AsyncStreamingResponse):
    """LlamaIndex's, with `get_response` handing its citations on."""

    async def get_response(self) -> Response:
        """Return the whole response once it is read."""
        return hand_on(self, await super().get_response())


def let_hand_on(response: Any) -> None:
    """Give a response of LlamaIndex's own class the one of these that stands for it.

    An attribute would do for `get_response`, but it would hold the response: an abandoned stream
    would then not be closed before the garbage collector comes.
    """
    if type(response) is StreamingResponse:
        response.__class__ = CitedStreamingResponse
    elif type(response) is AsyncStreamingResponse:
        response.__class__ = CitedAsyncStreamingResponse
