import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from edge.channel import Endpoint
from edge.endpoints import ingest_endpoint
from edge.settings import EdgeSettings
from servicekit.errors import SightlineError
from servicekit.settings import SettingsError
from tests.fakes.ingest import FakeIngest
from tests.fakes.names import NameServer


def test_an_api_key_may_stay_on_this_machine() -> None:
    assert Endpoint("127.0.0.1:1", api_key="k").metadata == (("authorization", "Bearer k"),)


def test_a_credential_does_not_leave_this_machine_in_plain_text(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    for arguments in ({"api_key": "k"}, {"api_key_file": tmp_path / "key"}):
        with pytest.raises(ValueError, match="api_key must not be sent in plain text to"):
            Endpoint("10.0.0.1:1", **arguments)
    assert Endpoint("10.0.0.1:1").metadata == ()
    assert Endpoint("10.0.0.1:1", grpc.ssl_channel_credentials(), "k").metadata


@pytest.mark.parametrize("key", ["two\nlines", "k\n", "schlüssel", "a\x00b"])
def test_what_cannot_be_sent_is_no_credential(key: str) -> None:
    with pytest.raises(ValueError, match=r"^api_key must be one line of printable ASCII$"):
        Endpoint("127.0.0.1:1", api_key=key)


def test_a_credential_in_a_file_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("first\n")
    endpoint = Endpoint("127.0.0.1:1", api_key_file=path)
    assert endpoint.metadata == (("authorization", "Bearer first"),)
    path.write_text("second")
    assert endpoint.metadata == (("authorization", "Bearer second"),)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two\nlines", b"\xff", b"a\x00b"])
def test_a_file_that_holds_no_credential_is_no_credential(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SightlineError, match=r"api_key_file: .* cannot be used") as caught:
        _ = Endpoint("127.0.0.1:1", api_key_file=path).metadata
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(SettingsError, match=r"api_key_file: .* cannot be used"):
        ingest_endpoint(EdgeSettings.model_validate({"api_key_file": path}))


def test_a_node_has_one_credential(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="api_key_file: must not be given with api_key"):
        EdgeSettings.model_validate({"api_key": "k", "api_key_file": tmp_path / "key"})


def test_an_api_key_is_not_shown() -> None:
    assert "sesame" not in repr(Endpoint("127.0.0.1:1", api_key="sesame"))


def test_a_channel_survives_an_outage() -> None:
    ingest = FakeIngest()
    ingest.start()
    ingest.stop()
    with Endpoint(ingest.target).channel([("grpc.max_receive_message_length", 10)]) as channel:
        call = channel.unary_unary(
            "/sightline.ingest.v1.IngestService/GetWatermark",
            request_serializer=None,
            response_deserializer=None,
        )
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=5)
        with ingest:
            assert call(b"", timeout=20, wait_for_ready=True) == b""


def _named(host: str) -> "grpc.GenericRpcHandler[Any, Any]":
    """Return a service that answers with the address at which it was reached."""
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: host.encode())
    return grpc.method_handlers_generic_handler("s", {"M": handler})


@pytest.fixture
def hosts() -> Iterator[int]:
    """Serve at two addresses; yield the port of both."""
    port = 0
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        for host in ("127.0.0.1", "127.0.0.2"):
            server = grpc.server(pool, handlers=[_named(host)])
            port = server.add_insecure_port(f"{host}:{port}")
            server.start()
            stack.callback(server.stop, None)
        yield port


def _reached(target: str) -> bytes:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with Endpoint(target).channel(options) as channel:
        answer: bytes = channel.unary_unary("/s/M", None, None)(b"", timeout=20)
        return answer


def test_devices_spread_over_the_addresses_of_a_name(hosts: int) -> None:
    with NameServer() as names:
        names.addresses = ("127.0.0.1", "127.0.0.2")
        reached = Counter(_reached(names.target(hosts)) for _ in range(40))
    assert min(reached[b"127.0.0.1"], reached[b"127.0.0.2"]) >= 5, reached


def test_addresses_in_a_target_are_tried_in_their_order(hosts: int) -> None:
    target = f"ipv4:127.0.0.2:{hosts},127.0.0.1:{hosts}"
    reached = Counter(_reached(target) for _ in range(40))
    # gRPC tries the next one after 250 ms, so a machine that stalls makes some exceptions.
    assert reached[b"127.0.0.2"] >= 35, reached


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, pytest.param(45, marks=pytest.mark.soak)])
def test_a_channel_never_waits_long_for_its_next_try(seconds: float) -> None:
    """gRPC's own default waits a second after the first try, and two minutes in the end."""
    tries: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_refuse, args=(server, tries), daemon=True).start()
        with Endpoint(f"127.0.0.1:{server.getsockname()[1]}").channel() as channel:
            call = channel.unary_unary("/s/M", request_serializer=None, response_deserializer=None)
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=seconds, wait_for_ready=True)
        server.shutdown(socket.SHUT_RDWR)
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits[0] < 0.9, waits
    assert len(waits) >= 3, waits
    assert max(waits) < 7.0, waits  # 5 s, a fifth of chance, and a machine that is busy


def _refuse(server: socket.socket, tries: list[float]) -> None:
    with suppress(OSError):  # the server is closed
        while True:
            connection, _ = server.accept()
            tries.append(time.monotonic())
            connection.close()
