"""The front door: what happens to each request before and after its route.

It refuses foreign host names and origins, bounds the request's size and the time in which it
arrives, cancels the route when its client has gone, and writes headers, metrics and the access log.
"""

import asyncio
import logging
import time
from collections.abc import MutableMapping
from typing import Any

import grpc
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console_service.errors import FACTS, response_of, unforeseen
from console_service.hosts import is_allowed_host, is_allowed_origin
from console_service.metrics import ConsoleMetrics
from console_service.settings import ConsoleSettings
from servicekit.errors import SightlineError, invalid

access = logging.getLogger("access")
CLIENT_GONE = 499
"""Status in metrics and logs of a request whose client did not wait for the answer."""
CSP = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SLOWEST = 16 * 1024
"""Bytes of a body that must arrive in a second, beyond the time for its next part."""
ENDLESS = frozenset({"/live"})
"""Paths whose answers do not end, so that there is no HEAD of them."""
TIMINGS = "sightline.timings"
"""Key of a scope: times by name, s, for the header `Server-Timing`."""


class Front:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        settings: hosts, origins and limits.
        metrics: counts of requests.
    """

    def __init__(self, app: ASGIApp, settings: ConsoleSettings, metrics: ConsoleMetrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[TIMINGS], scope[FACTS] = {}, {}
        answer = _Answer(scope, send)
        try:
            self._check(scope)
            await self._until_gone(scope, receive, answer)
        except SightlineError as error:
            await answer.fail(error)
        except asyncio.CancelledError:
            answer.status = answer.status or CLIENT_GONE
            raise
        except _ClientGoneError:
            answer.status = CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - it is logged, and the caller gets its number
            if "error_id" not in scope[FACTS]:
                await answer.fail(unforeseen(scope, error))
        finally:
            self._ended(scope, answer)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if _has_two_lengths(scope):
            raise invalid("Content-Length", "must not be given beside Transfer-Encoding")
        host = headers.get("host", "")
        if not is_allowed_host(host, self._settings.allowed_hosts):
            raise SightlineError(
                grpc.StatusCode.PERMISSION_DENIED,
                "HOST_NOT_ALLOWED",
                f"the console does not answer for the host {host[:256]!r}: add its name to the"
                " setting allowed_hosts",
            )
        origin = headers.get("origin")
        if (
            scope["method"] not in _SAFE
            and origin is not None
            and not is_allowed_origin(origin, host, self._settings.cors_origins)
        ):
            raise SightlineError(
                grpc.StatusCode.PERMISSION_DENIED,
                "ORIGIN_NOT_ALLOWED",
                f"a page of the origin {origin[:256]!r} may change nothing here: add it to the"
                " setting cors_origins if it may",
            )
        size = headers.get("content-length", "0")
        if size.isdecimal() and int(size) > self._settings.max_request_bytes:
            raise self._too_large()

    async def _until_gone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and cancel it when the client closes the connection.

        Raises:
            _ClientGoneError: it was cancelled.
        """
        body = _Body(receive, self._settings.receive_timeout_seconds)
        body.limit, body.too_large = self._settings.max_request_bytes, self._too_large()
        inner, method = scope, scope["method"]
        if method == "HEAD" and scope["path"] not in ENDLESS:
            inner = {**scope, "method": "GET"}  # the server sends no body for its own scope's HEAD
        answering = asyncio.ensure_future(self._app(inner, body.next, send))
        leaving = asyncio.ensure_future(body.pump())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})
                raise _ClientGoneError
            answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            scope.update(inner)  # with the route that was found
            scope["method"] = method

    def _too_large(self) -> SightlineError:
        return invalid(
            "body",
            f"must be at most {self._settings.max_request_bytes} bytes (setting max_request_bytes)",
            reason="REQUEST_TOO_LARGE",
        )

    def _ended(self, scope: Scope, answer: "_Answer") -> None:
        seconds = time.monotonic() - answer.begun
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.ended(route, answer.status or CLIENT_GONE, seconds)
        if self._settings.access_log and access.isEnabledFor(logging.INFO):
            fields = {
                "method": scope["method"],
                "path": scope["path"][:512],
                "status": answer.status or CLIENT_GONE,
                "peer": (scope.get("client") or ("",))[0],
                "duration_ms": round(seconds * 1e3, 3),
                **scope[FACTS],
            }
            access.info("request", extra={"fields": fields})


class _ClientGoneError(Exception):
    """The client has closed the connection before the end of the answer."""


class _Body:
    """The messages of a request, read ahead by one so that the end of the connection is noticed."""

    limit: int
    too_large: SightlineError

    def __init__(self, receive: Receive, timeout: float) -> None:
        self._receive = receive
        self._timeout = timeout
        self._messages: asyncio.Queue[Message | SightlineError] = asyncio.Queue(1)
        self._size = 0
        self._waited = 0.0
        """Time that was spent on waiting for the client, s."""

    async def next(self) -> Message:
        """Return the next message of the request. Raises SightlineError for one too many."""
        message = await self._messages.get()
        if isinstance(message, SightlineError):
            raise message
        return message

    async def pump(self) -> None:
        """Read messages until the client has gone."""
        more = True
        while True:
            try:
                async with asyncio.timeout(self._patience() if more else None):
                    begun = time.monotonic()
                    message = await self._receive()
                    self._waited += time.monotonic() - begun
            except TimeoutError:
                await self._messages.put(self._stalled())
                more = False
                continue
            if message["type"] == "http.disconnect":
                return
            self._size += len(message.get("body", b""))
            more = message.get("more_body", False)
            await self._messages.put(self.too_large if self._size > self.limit else message)

    def _patience(self) -> float:
        """Return the time for the next part of the body, s.

        A client that sends a byte now and then would otherwise hold its place without an end.
        """
        return self._timeout + min(self._size / _SLOWEST - self._waited, 0.0)

    def _stalled(self) -> SightlineError:
        return SightlineError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "REQUEST_STALLED",
            f"the request stalled: a part of it must arrive within {self._timeout:g} s (setting"
            f" receive_timeout_seconds), and {_SLOWEST // 1024} KiB each second",
        )


class _Answer:
    """The answer of one request; it is what the application sends to."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.begun = time.monotonic()
        self.status = 0
        """HTTP status; 0: the answer has not begun."""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send one message of the answer, the first with the console's headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers["server-timing"] = self._timings()
            if _has_two_lengths(self._scope):
                headers["connection"] = "close"
        await self._send(message)

    async def fail(self, error: SightlineError) -> None:
        """Send an error, unless the answer has begun."""
        if not self.status:
            status = 413 if error.reason == "REQUEST_TOO_LARGE" else None
            await response_of(error, status)(self._scope, _no_more, self)

    def _timings(self) -> str:
        spent = {**self._scope[TIMINGS], "total": time.monotonic() - self.begun}
        return ", ".join(f"{name};dur={1e3 * seconds:.1f}" for name, seconds in spent.items())


def _has_two_lengths(scope: Scope) -> bool:
    """Return True if a request has two lengths, of which a proxy may have taken the other.

    What follows on the connection may then be half of a request (RFC 9112, 6.3).
    """
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers and "content-length" in headers


async def _no_more() -> Message:
    return {"type": "http.disconnect"}
