import pytest

from servicekit.addresses import is_local_peer, stays_here


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:50051", "unix:/run/s.sock", "unix:s"],
)
def test_this_machine(address: str) -> None:
    assert stays_here(address)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1:1", "0.0.0.0:1", "[::]:1", "ingest.example:1", "dns:///x:1", "localhost.x:1"],
)
def test_elsewhere(address: str) -> None:
    assert not stays_here(address)


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:", "unix:/s"])
def test_a_peer_on_this_machine(peer: str) -> None:
    assert is_local_peer(peer)


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.1:1", "ipv6:%5B2001:db8::1%5D:1", "", "tcp:x", "?"])
def test_a_peer_elsewhere(peer: str) -> None:
    assert not is_local_peer(peer)
