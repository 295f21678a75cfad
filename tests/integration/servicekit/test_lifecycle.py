"""A server's life, of a real process with real signals."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servicekit.errors import from_rpc_error
from tests.unit.servicekit.echo import ECHO, call
from tests.unit.servicekit.test_tls import issue

SCRIPT = Path(__file__).with_name("echo_service.py")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNREADY = 503, f"not ready: {ECHO}\n"
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]


class Process:
    """The echo service in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        """Return its next line on stdout, without the newline; empty at the end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def ready(self) -> dict[str, Any]:
        """Return what it says once it is ready."""
        assert await self.line() == "starting"
        line = json.loads(await self.line())
        assert line["event"] == "ready"
        return dict(line)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    async def end(self) -> tuple[int, list[str], str]:
        """Return exit code, the lines left on stdout, and stderr."""
        async with asyncio.timeout(20):
            out, err = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, out.decode().splitlines(), err.decode()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


@contextlib.asynccontextmanager
async def started(*flags: str) -> AsyncIterator[Process]:
    pipe = asyncio.subprocess.PIPE
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = Process(
        await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), *flags, stdout=pipe, stderr=pipe, env=env
        )
    )
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(ValueError):
            await process.end()


async def check(channel: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await stub.Check(request, wait_for_ready=True, timeout=10)).status)


async def until_status(channel: grpc.aio.Channel, service: str, status: int) -> None:
    async with asyncio.timeout(10):
        while await check(channel, service) != status:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.01)


async def test_a_ready_server_is_live_ready_reflected_and_measured() -> None:
    async with started("--metrics-listen", "127.0.0.1:0") as process:
        ready = await process.ready()
        assert ready["service"] == "echo"
        assert ready["address"].startswith("127.0.0.1:")
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            assert await check(channel, "") == SERVING
            assert await check(channel, ECHO) == SERVING
            assert await call(channel, "UnaryUnary", (b"x",)) == [b"x"]
            listed = await services(channel)
        assert {ECHO, "grpc.health.v1.Health"} < listed
        assert "grpc.reflection.v1alpha.ServerReflection" in listed
        url = f"http://{ready['metrics_address']}/metrics"
        page = (await asyncio.to_thread(urllib.request.urlopen, url, timeout=5)).read().decode()
        counted = f'{{caller="anonymous",code="OK",method="UnaryUnary",service="{ECHO}"}} 1.0'
        assert f"sightline_grpc_requests_total{counted}" in page
        process.signal()
        code, out, err = await process.end()
    assert (code, out) == (0, ["stopped"])
    # That nobody needs a credential, the call, that it drains, that it has drained.
    assert [json.loads(line)["service"] for line in err.splitlines()] == ["echo"] * 4


def probed(ready: dict[str, Any], path: str) -> tuple[int, str]:
    """Return the status and the body of a probe."""
    try:
        with urllib.request.urlopen(f"http://{ready['metrics_address']}{path}", timeout=10) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def until_probed(ready: dict[str, Any], path: str, expected: tuple[int, str]) -> None:
    async with asyncio.timeout(10):
        while await asyncio.to_thread(probed, ready, path) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # fewer than the server's pace allows


async def services(channel: grpc.aio.Channel) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = stub.ServerReflectionInfo(iter([request]))
    return {s.name async for a in answers for s in a.list_services_response.service}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_calls_finish(number: signal.Signals) -> None:
    async with started("--grace-seconds", "60") as process:
        ready = await process.ready()
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=ECHO))
            assert (await watch.read()).status == SERVING
            running = asyncio.ensure_future(call(channel, "UnaryUnary", (b"sleep 0.5",)))
            await until_running(ready["address"])
            begun = time.monotonic()
            process.signal(number)
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is EOF
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "UnaryUnary")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await running == [b"sleep 0.5"]
            code, out, _ = await process.end()
        assert (code, out) == (0, ["stopped"])
        assert time.monotonic() - begun < 10  # the watcher did not hold it up for the grace


async def until_running(address: str) -> None:
    """Wait for a whole call, so that earlier data of another connection has arrived."""
    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(5):
            await call(channel, "UnaryUnary", (b"x",))


async def test_a_call_that_outlives_the_grace_unwinds_before_stop() -> None:
    async with started("--grace-seconds", "0.2") as process:
        ready = await process.ready()
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            hanging = asyncio.ensure_future(call(channel, "UnaryUnary", (b"hang",)))
            await until_running(ready["address"])
            process.signal()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await hanging
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        code, out, _ = await process.end()
        assert (code, out) == (0, ["unwound", "stopped"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    async with started("--grace-seconds", "600") as process:
        ready = await process.ready()
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=ECHO))
            await watch.read()
            hanging = asyncio.ensure_future(call(channel, "UnaryUnary", (b"hang",)))
            await until_running(ready["address"])
            process.signal()
            assert (await watch.read()).status == NOT_SERVING
            process.signal(number)
            code, out, _ = await process.end()
            assert (code, out) == (-number, [])
            with pytest.raises(grpc.aio.AioRpcError):
                await hanging


async def test_drain_may_bring_a_stream_to_its_end() -> None:
    async with started("--grace-seconds", "600") as process:
        ready = await process.ready()
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            begin: Any = channel.stream_unary(f"/{ECHO}/StreamUnary", None, None)
            stream = begin()
            await stream.write(b"a")
            await stream.write(b"b")
            await until_running(ready["address"])
            process.signal()
            assert await stream == b"ab"
            code, out, _ = await process.end()
        assert (code, out) == (0, ["stopped"])


async def test_until_warm_it_is_live_but_refuses_calls(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/echo.sock"
    async with started("--listen", address, "--warm-up-seconds", "600") as process:
        assert await process.line() == "starting"
        async with grpc.aio.insecure_channel(address) as channel:
            assert await check(channel, "") == SERVING
            assert await check(channel, ECHO) == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "UnaryUnary")
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
        assert error.retry_after == 1.0
        process.signal()  # ends the warm-up too
        code, out, _ = await process.end()
    assert (code, out) == (0, ["stopped"])


async def test_a_failed_warm_up_is_one_line_and_exit_1() -> None:
    async with started("--warm-up-error", "no such model", "--log-level", "error") as process:
        code, out, err = await process.end()
    assert (code, out) == (1, ["starting", "stopped"])
    assert err == "echo: cannot start: no such model\n"


async def test_a_failed_stop_is_not_success() -> None:
    async with started("--stop-error", "disk full") as process:
        await process.ready()
        process.signal()
        code, _, err = await process.end()
    assert code == 1
    assert "disk full" in err


async def test_a_service_can_turn_itself_unready_from_a_thread() -> None:
    async with started("--metrics-listen", "127.0.0.1:0") as process:
        ready = await process.ready()
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            assert await asyncio.to_thread(probed, ready, "/readyz") == (200, "ready\n")
            await call(channel, "UnaryUnary", (b"unready",))
            await until_status(channel, ECHO, NOT_SERVING)
            assert await check(channel, "") == SERVING
            assert await asyncio.to_thread(probed, ready, "/readyz") == UNREADY
            assert await asyncio.to_thread(probed, ready, "/healthz") == (200, "live\n")
            await call(channel, "UnaryUnary", (b"ready",))
            await until_status(channel, ECHO, SERVING)
            assert await asyncio.to_thread(probed, ready, "/readyz") == (200, "ready\n")


async def test_a_draining_server_is_live_and_not_ready() -> None:
    async with started("--metrics-listen", "127.0.0.1:0", "--grace-seconds", "60") as process:
        ready = await process.ready()
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            running = asyncio.ensure_future(call(channel, "UnaryUnary", (b"sleep 1",)))
            await until_running(ready["address"])
            process.signal()
            await until_probed(ready, "/readyz", UNREADY)
            assert await asyncio.to_thread(probed, ready, "/healthz") == (200, "live\n")
            assert await running


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
async def test_a_taken_port_is_refused(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with started(flag, address, "--log-level", "error") as process:
            code, out, err = await process.end()
    assert (code, out) == (1, ["stopped"])
    assert err.splitlines()[-1].startswith(f"echo: cannot listen on {address}")


async def test_two_servers_cannot_share_a_port() -> None:
    async with started() as first:
        address = (await first.ready())["address"]
        async with started("--listen", address) as second:
            code, _, err = await second.end()
    assert code == 1
    assert f"cannot listen on {address}" in err


@pytest.mark.parametrize("listen", ["[::1]:0", "localhost:0", "unix:{}/echo.sock"])
async def test_it_listens_on_every_kind_of_address(listen: str, tmp_path: Path) -> None:
    listen = listen.format(tmp_path)
    if listen.startswith("[") and not has_ipv6():
        pytest.skip("no IPv6 on the loopback here")
    async with started("--listen", listen) as process:
        address = (await process.ready())["address"]
        assert address.startswith(listen.removesuffix(":0"))
        assert not address.endswith(":0")
        async with grpc.aio.insecure_channel(address) as channel:
            assert await call(channel, "UnaryUnary") == [b"a"]


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


async def test_it_serves_tls(tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority")
    server = issue(tmp_path, "server", authority)
    async with started(
        f"--tls-cert-file={server.cert_file}", f"--tls-key-file={server.key_file}"
    ) as process:
        address = (await process.ready())["address"]
        credentials = grpc.ssl_channel_credentials(authority.cert_file.read_bytes())
        async with grpc.aio.secure_channel(address, credentials) as channel:
            assert await call(channel, "UnaryUnary") == [b"a"]


async def test_messages_over_the_limit_are_refused() -> None:
    async with started("--max-message-bytes", "1024") as process:
        address = (await process.ready())["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            assert await call(channel, "UnaryUnary", (b"make 1".ljust(1024),)) == [b"x"]
            assert await call(channel, "UnaryUnary", (b"make 1024",)) == [b"x" * 1024]
            for request in (b"make 1".ljust(1025), b"make 1025"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(channel, "UnaryUnary", (request,))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_bad_setting_is_one_line_and_exit_2(tmp_path: Path) -> None:
    async with started("--grace-seconds", "601") as process:
        code, out, err = await process.end()
    assert (code, out) == (2, [])
    assert err == (
        "echo: grace_seconds: must be less than or equal to 600 (got '601'; from --grace-seconds)\n"
    )
    missing = tmp_path / "missing.pem"
    async with started(f"--tls-cert-file={missing}", f"--tls-key-file={missing}") as process:
        code, _, err = await process.end()
    assert code == 2
    assert "tls_key_file: " in err
