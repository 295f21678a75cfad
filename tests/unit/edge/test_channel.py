import grpc
import pytest

from edge.channel import Endpoint
from tests.fakes.ingest import FakeIngest


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:50051", "unix:/run/s.sock", "unix:s"],
)
def test_an_api_key_may_stay_on_this_machine(target: str) -> None:
    assert Endpoint(target, api_key="k").metadata == (("authorization", "Bearer k"),)


@pytest.mark.parametrize(
    "target",
    ["10.0.0.1:1", "ingest.example:1", "[fd00::1]:1", "dns:///ingest.example:1", "localhost.x:1"],
)
def test_an_api_key_does_not_leave_this_machine_in_plain_text(target: str) -> None:
    with pytest.raises(ValueError, match="api_key must not be sent in plain text to"):
        Endpoint(target, api_key="k")
    assert Endpoint(target).metadata == ()
    assert Endpoint(target, grpc.ssl_channel_credentials(), "k").metadata


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
