"""The lifecycle of a server: bind, warm up, report ready, serve, drain on a signal, stop."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from servicekit import resources
from servicekit.auth.caller import Scope
from servicekit.auth.guard import Access, report_open_access
from servicekit.calls import budgets
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.gate import Gate
from servicekit.calls.interceptors import Guard, server_interceptor
from servicekit.calls.tarpit import Tarpit
from servicekit.health import HealthService
from servicekit.private_files import share
from servicekit.server_options import server_options
from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError
from servicekit.standard_streams import OutputError, flushed, print_in_background
from servicekit.telemetry import background_stderr
from servicekit.telemetry.loop_lag import loop_lag_measured
from servicekit.telemetry.metrics_server import MetricsServer
from servicekit.telemetry.tracing import join_trace
from servicekit.tls import server_credentials

if TYPE_CHECKING:
    from servicekit.telemetry.spans import Spans

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FLUSH_SECONDS = 2.0
"""Maximum time for the last spans to reach the collector, s."""
_UNWIND_SECONDS = 5.0
"""Maximum time for cancelled handlers to end before their resources are closed, s."""


def add_methods(
    server: grpc.aio.Server,
    service: str,
    handlers: "dict[str, grpc.RpcMethodHandler[Any, Any]]",
) -> None:
    """Add a service's methods, each with a queue of its own for waiting calls.

    Calls of methods that are not registered share one queue with those of unknown methods, whose
    flood would delay all of them. The server serves the queues in turn.

    Args:
        server: a server that is not started.
        service: full name.
        handlers: by the method's short name.
    """
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    # The published types lack it.
    server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


class StartError(Exception):
    """The server cannot start. The message is one sentence for people."""


@dataclass(frozen=True)
class Service:
    """One gRPC service that a server offers."""

    full_name: str
    """Name with its package, such as `sightline.ingest.v1.IngestService`."""
    register: Callable[[grpc.aio.Server], None]
    """Adds the service's handlers to a server; they must be coroutine functions."""
    access: Mapping[str, Scope | None] = field(default_factory=dict)
    """Required scopes by method; None: open to everyone, even during warm-up. A method that is not
    listed needs a credential."""
    large: Collection[str] = ()
    """Methods whose requests may be as large as `max_message_bytes`. Requests of the others are
    small, and never wait behind large ones."""
    unlimited: Collection[str] = ()
    """Methods whose calls get no default deadline: streams that last while their messages come."""


class Readiness:
    """The readiness of the services; `set` may be called from any thread."""

    def __init__(self, health: HealthService) -> None:
        self._loop = asyncio.get_running_loop()
        self._health = health

    def set(self, ready: bool) -> None:
        """Answer SERVING (True) or NOT_SERVING (False) for every service from now on.

        It never shows SERVING before `start` has returned, nor once draining has begun.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: there are no more checks
            self._loop.call_soon_threadsafe(self._health.set_ready, ready)


async def serve(
    settings: ServerSettings,
    services: Sequence[Service],
    *,
    name: str,
    start: Callable[[Readiness], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    registry: CollectorRegistry,
    drain: Callable[[], Awaitable[None]] | None = None,
    options: Sequence[tuple[str, int | str]] = (),
    bounds: BudgetBounds | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. A second signal ends the process.

    The socket is bound first, so that liveness (`""`) answers while `start` warms up; until it
    returns, the services are NOT_SERVING and their calls fail with UNAVAILABLE, `NOT_READY`, except
    for methods that are open to everyone. Then one JSON line on stdout reports `ready` with the
    bound address.

    On a signal the services turn NOT_SERVING, no new call is admitted, running calls get
    `settings.grace_seconds` and are then cancelled, and `stop` is awaited, however long it takes.

    Args:
        settings: addresses, limits, TLS, credentials, logs, spans.
        services: the services, besides health and reflection.
        name: name of the process in the ready line, such as `ingest`.
        start: warms up; may keep the `Readiness` to turn the services NOT_SERVING later.
        stop: flushes and closes; called once, even if `start` failed, was cancelled or never ran.
        registry: gets the metrics of calls; `metrics_listen` serves it.
        drain: called to end the running calls soon, and cancelled with them at the end of the
            grace period; None: they end by themselves.
        options: channel options, which override the defaults.
        bounds: memory limits of requests; None: those of the settings.

    Raises:
        StartError: an address cannot be bound, or `start` failed.
        SettingsError: a file that a setting names cannot be used.
    """
    health = HealthService([service.full_name for service in services])
    access = {f"/{s.full_name}/{m}": scope for s in services for m, scope in s.access.items()}
    # Methods that are open to everyone are about the server itself, and work from the start.
    open_to_all = [method for method, scope in access.items() if scope is None]
    gate = Gate(health, open_to_all)
    tarpit = Tarpit(time.monotonic, open_to_all)
    with stop_signals() as signalled:
        try:
            spans = _spans(settings, name)
            server = _build(
                settings,
                services,
                access,
                health,
                gate,
                registry,
                options,
                bounds or budgets.bounds_of(settings),
                spans or join_trace,
                tarpit,
            )
            address = _bind(server, settings)
            report_open_access(settings, address)
            resources.allow_connections(settings.max_connections)
            with _metrics(settings, registry, health) as metrics_address:
                await server.start()
                try:
                    if await _warm_up(start, Readiness(health), signalled):
                        health.open()
                        report_ready(name, address, metrics_address)
                        async with _lag_measured(metrics_address, registry):
                            await signalled.wait()
                finally:
                    health.close()
                    tarpit.close()
                    await gate.close()
                    left = await _drain(server, gate, drain, settings.grace_seconds)
                    if spans is not None:
                        await asyncio.to_thread(spans.close, min(left, _FLUSH_SECONDS))
        finally:
            await stop()


def _spans(settings: ServerSettings, name: str) -> "Spans | None":
    """Return the guard that makes spans; None: they are off."""
    if not settings.otlp_endpoint:
        return None
    from servicekit.telemetry.spans import (
        Spans,  # a second to import, and memory that most servers do not need
    )

    return Spans(settings.otlp_endpoint, settings.otlp_sample_ratio, name)


def _lag_measured(
    metrics_address: str | None, registry: CollectorRegistry
) -> contextlib.AbstractAsyncContextManager[None]:
    """Measure the event loop if metrics are served."""
    return loop_lag_measured(registry) if metrics_address else contextlib.nullcontext()


def run(main: Callable[[], Awaitable[None]], *, prog: str) -> int:
    """Run a process's main coroutine and return its exit code.

    0: it returned; 1: it could not start; 2: invalid setting; 130: it was interrupted before it
    served. An error goes to stderr as one sentence. From here on, writing to stderr never blocks
    the process.
    """
    background_stderr.install()

    async def coroutine() -> None:
        await main()

    try:
        with flushed(), asyncio.Runner(loop_factory=_new_event_loop) as runner:
            runner.run(coroutine())
    except OutputError as error:  # of --help or --version
        if error.sentence:
            sys.stderr.write(f"{prog}: {error.sentence}\n")
        return 1
    except (SettingsError, StartError) as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:  # before `serve` handles the signals
        return 128 + signal.SIGINT
    return 0


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop, which costs less time per message, where it exists."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def ends_with_terminal() -> bool:
    """Return True if SIGHUP ends this process: it has a terminal, which sends it when it closes.

    A service without a terminal, as systemd, cron and containers start it, may use SIGHUP to
    reload. So may one that `nohup` protects.
    """
    if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """Set the event at the first SIGTERM, SIGINT or, from a terminal, SIGHUP.

    The second SIGTERM or SIGINT ends the process at once.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    numbers = [*_SIGNALS, *([signal.SIGHUP] if ends_with_terminal() else [])]

    def first() -> None:
        signalled.set()
        # Not SIGHUP: a terminal that closes and its shell each send one.
        for number in _SIGNALS:
            # The default action instead of a handler: it works even if the loop is stuck.
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, first)
    try:
        yield signalled
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _build(
    settings: ServerSettings,
    services: Sequence[Service],
    access: Access,
    health: HealthService,
    gate: Gate,
    registry: CollectorRegistry,
    options: Sequence[tuple[str, int | str]],
    bounds: BudgetBounds,
    trace: Guard,
    tarpit: Tarpit,
) -> grpc.aio.Server:
    names = [service.full_name for service in services]
    all_options = {
        **server_options(settings),
        **budgets.channel_options(bounds),
        **dict(options),
    }
    large = {f"/{service.full_name}/{method}" for service in services for method in service.large}
    unlimited = {f"/{service.full_name}/{m}" for service in services for m in service.unlimited}
    budget_for = budgets.MemoryBudgets(bounds, large).of
    interceptor = server_interceptor(
        names, access, settings, gate, registry, budget_for, trace, tarpit, unlimited
    )
    server = grpc.aio.server(interceptors=[interceptor], options=list(all_options.items()))
    for service in services:
        service.register(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, HEALTH, reflection.SERVICE_NAME], server)
    return server


def _bind(server: grpc.aio.Server, settings: ServerSettings) -> str:
    """Return the bound address, with its real port."""
    credentials = server_credentials(settings)
    try:
        if credentials is None:
            port = server.add_insecure_port(settings.listen)
        else:
            port = server.add_secure_port(settings.listen, credentials)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {settings.listen}: {error}") from error
    if settings.listen.startswith("unix:"):
        share(Path(settings.listen.removeprefix("unix:").removeprefix("//")))
        return settings.listen
    return f"{settings.listen.rpartition(':')[0]}:{port}"


@contextlib.contextmanager
def _metrics(
    settings: ServerSettings, registry: CollectorRegistry, health: HealthService
) -> Iterator[str | None]:
    """Serve metrics and probes over HTTP; yield the bound address, None if they are off."""
    listen = settings.metrics_listen
    if not listen:
        yield None
        return
    try:
        server = MetricsServer(listen, registry, health.probe())
    except OSError as error:
        raise StartError(f"cannot listen on {listen} for metrics: {error.strerror}") from error
    try:
        yield server.address
    finally:
        server.close()


async def _warm_up(
    start: Callable[[Readiness], Awaitable[None]], readiness: Readiness, signalled: asyncio.Event
) -> bool:
    """Return True if `start` has ended, False if a signal came first."""
    warming = asyncio.ensure_future(start(readiness))
    waiting = asyncio.ensure_future(signalled.wait())
    try:
        await asyncio.wait({warming, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not warming.done():
            return False
        warming.result()
    except (SettingsError, StartError):
        raise
    except Exception as error:
        logger.debug("start failed", exc_info=True)
        raise StartError(f"cannot start: {error}") from error
    finally:
        for task in (warming, waiting):
            task.cancel()
        await asyncio.gather(warming, waiting, return_exceptions=True)
    return True


def report_ready(name: str, address: str, metrics_address: str | None) -> None:
    """Print the JSON line on stdout that says that a server is ready, and where.

    Args:
        name: name of the service, such as `ingest`.
        address: the bound address, with its real port.
        metrics_address: the bound address of metrics; None: they are off.
    """
    line = {
        "event": "ready",
        "service": name,
        "address": address,
        "metrics_address": metrics_address,
        "pid": os.getpid(),
    }
    print_in_background(json.dumps(line) + "\n")


async def _drain(
    server: grpc.aio.Server,
    gate: Gate,
    drain: Callable[[], Awaitable[None]] | None,
    grace: float,
) -> float:
    """Let running calls end within the grace period, and return when no handler runs any more.

    Returns:
        The rest of the grace period, s, >= 0.
    """
    logger.info("draining for at most %g s", grace)
    clock = asyncio.get_running_loop().time
    end = clock() + grace
    stopping = asyncio.ensure_future(server.stop(grace))
    if drain is not None:
        await _ask(drain, grace)
    await stopping
    try:
        async with asyncio.timeout(_UNWIND_SECONDS):
            await gate.empty()
    except TimeoutError:
        logger.warning("calls still run %g s after they were cancelled", _UNWIND_SECONDS)
    logger.info("drained")
    return max(end - clock(), 0.0)


async def _ask(drain: Callable[[], Awaitable[None]], grace: float) -> None:
    try:
        async with asyncio.timeout(grace):
            await drain()
    except TimeoutError:
        logger.warning("drain did not end within %g s", grace)
    except Exception:
        logger.exception("drain failed")
