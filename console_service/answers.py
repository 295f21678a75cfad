"""Answers of routes: a message of the contract as JSON."""

import time
from collections.abc import Mapping

import orjson
from google.protobuf.message import Message
from starlette.responses import Response

from console_service.backend import HttpCall
from servicekit.plain import plain


def answer(
    message: Message,
    call: HttpCall,
    *,
    more: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the HTTP response for a message.

    Args:
        message: the message.
        call: the request that it answers.
        more: fields beside those of the message.
        headers: further headers.
    """
    begun = time.monotonic()
    body = orjson.dumps({**plain(message), **(more or {})})
    call.spent("json", begun)
    return as_json(body, headers)


def as_json(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response that has this JSON and is not stored by caches."""
    return Response(
        body,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )
