"""The HTTP server of the console: bind, serve, and drain on a signal."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from console_service.connections import BoundedConnection
from console_service.settings import ConsoleSettings
from servicekit.addresses import stays_here
from servicekit.lifecycle import StartError, report_ready, stop_signals
from servicekit.telemetry.metrics_server import MetricsServer, Probe
from servicekit.tls import https_context

logger = logging.getLogger(__name__)
_BACKLOG = 1024
_KEEP_ALIVE_SECONDS = 30


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own; `ready` is set when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `servicekit.lifecycle.stop_signals`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self.ready.set()


def bind(address: str) -> socket.socket:
    """Return a socket that is bound to host:port; port 0: any free one.

    Raises:
        StartError: the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, place = found[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror or error}") from error
    return bound


async def serve(
    settings: ConsoleSettings,
    app: ASGIApp,
    registry: CollectorRegistry,
    draining: asyncio.Event,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. A second signal ends the process.

    Args:
        settings: addresses, TLS and limits.
        app: the application.
        registry: the metrics.
        draining: set when draining begins, so that event streams end.

    Raises:
        StartError: an address cannot be bound.
        SettingsError: a TLS file cannot be used.
    """
    config = _config(settings, app)
    with stop_signals() as signalled:
        bound = bind(settings.listen)
        address = f"{settings.listen.rpartition(':')[0]}:{bound.getsockname()[1]}"
        server = HttpServer(config)
        with _metrics(settings, registry, draining) as metrics_address:
            serving = asyncio.ensure_future(server.serve([bound]))
            ready = asyncio.ensure_future(server.ready.wait())
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                _warn_of_plain_text(settings, address)
                report_ready("console", address, metrics_address)
                await signalled.wait()
                logger.info("draining for at most %g s", settings.grace_seconds)
                draining.set()
                server.should_exit = True
            ready.cancel()
            await serving
            logger.info("drained")


def _config(settings: ConsoleSettings, app: ASGIApp) -> uvicorn.Config:
    class PatientConnection(BoundedConnection):
        head_seconds = settings.receive_timeout_seconds

    config = uvicorn.Config(
        app,
        http=PatientConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
    )
    config.load()
    if settings.tls_key_file and settings.tls_cert_file:
        # uvicorn's own context would keep the certificate that it was made with.
        config.ssl = https_context(settings.tls_key_file, settings.tls_cert_file)
    return config


@contextlib.contextmanager
def _metrics(
    settings: ConsoleSettings, registry: CollectorRegistry, draining: asyncio.Event
) -> Iterator[str | None]:
    """Serve metrics and probes over HTTP; yield the bound address, None if they are off."""
    if not settings.metrics_listen:
        yield None
        return
    try:
        server = MetricsServer(settings.metrics_listen, registry, _probe(draining))
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.metrics_listen} for metrics: {error.strerror}"
        ) from error
    try:
        yield server.address
    finally:
        server.close()


def _probe(draining: asyncio.Event) -> Probe:
    """Return a function for another event loop that asks this one what is not ready.

    While this event loop is stuck, no answer comes.
    """
    loop = asyncio.get_running_loop()

    async def not_ready() -> list[str]:
        return ["draining"] if draining.is_set() else []

    return lambda: asyncio.wrap_future(asyncio.run_coroutine_threadsafe(not_ready(), loop))


def _warn_of_plain_text(settings: ConsoleSettings, address: str) -> None:
    if settings.tls_cert_file or settings.secure_cookies or stays_here(settings.listen):
        return
    logger.warning(
        "credentials reach %s in plain text: set tls_cert_file, or secure_cookies if HTTPS ends at"
        " a proxy before the console",
        address,
    )
