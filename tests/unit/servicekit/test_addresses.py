import pytest

from servicekit.addresses import stays_here


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
