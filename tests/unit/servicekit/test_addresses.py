import socket
from pathlib import Path

import pytest

from servicekit import addresses
from servicekit.addresses import is_local_peer, is_this_machine, stays_here


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:50051", "unix:/run/s.sock", "unix:s"),
        *("dns:///localhost:1", "dns:localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1"),
        *("LOCALHOST:1", "[::ffff:127.0.0.1]:1", "localhost", "[::1]"),
    ],
)
def test_this_machine(address: str) -> None:
    assert stays_here(address)


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1:1", "0.0.0.0:1", "[::]:1", "ingest.example:1", "dns:///x:1", "localhost.x:1"),
        *("ipv4:127.0.0.1:1,10.0.0.1:1", "[::ffff:10.0.0.1]:1", "127.0.0.1.example:1"),
    ],
)
def test_elsewhere(address: str) -> None:
    assert not stays_here(address)


def test_names_and_addresses_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = "# 127.0.0.1 no\n127.0.0.1 Gate gate-1.plant.example # x\n192.0.2.7 cloud\n"
    (tmp_path / "hosts").write_text(hosts)
    monkeypatch.setattr(addresses, "_HOSTS_FILE", tmp_path / "hosts")
    own = ["127.0.0.1", "0.0.0.0", "localhost", "a.localhost", "localhost.", socket.gethostname()]
    own += ["gate", "GATE-1.plant.example", "dns:///gate"]
    for host in own:
        assert is_this_machine(f"{host}:50051"), host
    for host in ("no", "x", "cloud", "192.0.2.7", "[2001:db8::7]", "gate.example", "localhost.x"):
        assert not is_this_machine(f"{host}:50051"), host
    (tmp_path / "hosts").unlink()
    assert is_this_machine(f"{socket.gethostname()}:1")
    assert not is_this_machine("gate-1.plant.example:1")


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:", "unix:/s"])
def test_a_peer_on_this_machine(peer: str) -> None:
    assert is_local_peer(peer)


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.1:1", "ipv6:%5B2001:db8::1%5D:1", "", "tcp:x", "?"])
def test_a_peer_elsewhere(peer: str) -> None:
    assert not is_local_peer(peer)
