"""A process that calls what it is told to, and prints how each call ended: a JSON object.

Its environment names proxies, which gRPC reads when it is loaded and Python when it asks.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import closing

import cv2  # noqa: F401 - loaded early, as a camera's process does
import grpc

from edge.channel import Endpoint
from edge.cloud.client import InferenceClient
from edge.doctor import health, reach
from edge.sources.capture import Capture
from servicekit.errors import SightlineError
from servicekit.routes import fetch, proxy_of


def call(endpoint: Endpoint, options: tuple[tuple[str, object], ...] = ()) -> str:
    with endpoint.channel(options) as channel:
        method = channel.unary_unary("/s/M", request_serializer=None, response_deserializer=None)
        try:
            method(b"", timeout=SECONDS, metadata=endpoint.metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def key(target: str) -> str:
    """Call with a key, without TLS."""
    return call(Endpoint(target, api_key="open-sesame"))


def plain(target: str) -> str:
    return call(Endpoint(target))


def tls(target: str) -> str:
    return call(Endpoint(target, grpc.ssl_channel_credentials(), "open-sesame"))


def models(target: str) -> str:
    """Ask as a node does."""
    try:
        with InferenceClient(Endpoint(target, api_key="open-sesame"), timeout=SECONDS) as client:
            return f"{len(client.list_models())} models"
    except SightlineError as error:
        return error.code.name


def probe(target: str) -> str:
    """Ask for the health, as the doctor does."""
    try:
        return health.ask(Endpoint(target, api_key="open-sesame"), "s", SECONDS).status
    except SightlineError as error:
        return error.code.name


def dial(target: str) -> str:
    """Connect as the doctor does."""
    fault = reach.unreachable(target, SECONDS)
    return fault.message if fault else "OK"


def http(url: str) -> str:
    try:
        return fetch(url, SECONDS).decode()
    except OSError as error:
        return str(error)


def camera(url: str) -> str:
    try:
        with closing(Capture(url, 5.0)) as capture:
            return "no frame" if capture.advance(1) is None else "OK"
    except OSError as error:
        return str(error)


def spans(endpoint: str) -> str:
    """Export a span as a service does."""
    from opentelemetry.trace import SpanKind

    from servicekit.telemetry.spans import Spans

    exporting = Spans(endpoint, 1.0, "test")
    exporting._tracer.start_span("s", None, SpanKind.SERVER).end()
    exporting.close(SECONDS)
    return "done"


def route(target: str) -> str:
    """Call a target, with exceptions after a `|`; return the way that the doctor expects."""
    target, _, exceptions = target.partition("|")
    os.environ["no_proxy"] = exceptions
    plain(target)
    said = proxy_of(target)
    return f"{said.variable} {said.address}" if said else "direct"


SECONDS = float(os.environ.get("SECONDS", "5"))
DOORS: dict[str, Callable[[str], str]] = {
    door.__name__: door
    for door in (key, plain, tls, models, probe, dial, http, camera, spans, route)
}


def main() -> None:
    ends = {}
    for word in sys.argv[1:]:
        door, _, place = word.partition("=")
        ends[word] = DOORS[door](place)
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    main()
