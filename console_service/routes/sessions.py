"""Routes that begin and end the session of a browser."""

from typing import Annotated

import grpc
import orjson
from fastapi import APIRouter, Depends, Request
from sightline.ingest.v1.ingest_service_pb2 import GetWatermarkRequest
from starlette.responses import Response

from console_service.backend import INGEST
from console_service.context import READ, Calling, Here, console_of
from console_service.session import cookie_of
from servicekit.errors import SightlineError, invalid

router = APIRouter(prefix="/session", tags=["session"])
_MAX_BODY_BYTES = 8192
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["credential"],
                "properties": {"credential": {"type": "string"}},
            }
        }
    },
}
_ACCEPTED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED)
"""Codes of a call without a device whose credential is accepted."""


async def _shown(request: Request) -> str:
    """Return the credential in a body. It is read before the request has a place."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise invalid(
                "body", f"must be at most {_MAX_BODY_BYTES} bytes", reason="REQUEST_TOO_LARGE"
            )
    return _credential(body)


Shown = Depends(_shown)


@router.post(
    "",
    status_code=204,
    response_class=Response,
    dependencies=[Shown, READ],
    openapi_extra={"requestBody": _BODY},
)
async def begin(
    request: Request, here: Here, call: Calling, credential: Annotated[str, Shown]
) -> Response:
    """Begin a session with an API key or a JWT, which the ingest service must accept."""
    settings = here.settings
    cookie = cookie_of(credential, round(3600 * settings.session_hours), secure=_secure(request))
    call.authorization = f"Bearer {credential}"
    try:
        # The credential is judged before anything else; nothing has to be found.
        await here.backend.ask(
            INGEST, here.backend.ingest.GetWatermark, GetWatermarkRequest(), call
        )
    except SightlineError as error:
        if error.code not in _ACCEPTED:
            raise
    return _with_cookie(cookie)


@router.delete("", status_code=204, response_class=Response)
async def end(request: Request) -> Response:
    """End the session."""
    return _with_cookie(cookie_of("", 0, secure=_secure(request)))


def _credential(body: bytes) -> str:
    try:
        credential = orjson.loads(body)["credential"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        credential = None
    if not isinstance(credential, str) or not credential:
        raise invalid("credential", 'must be given: {"credential": "<API key or JWT>"}')
    return credential


def _secure(request: Request) -> bool:
    settings = console_of(request).settings
    return settings.secure_cookies or settings.tls_cert_file is not None


def _with_cookie(cookie: str) -> Response:
    return Response(status_code=204, headers={"Set-Cookie": cookie, "Cache-Control": "no-store"})
