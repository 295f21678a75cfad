from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_pb2 import DroppedCount, NodeAccount

from ingest_service.receive.decode import Decoder
from ingest_service.receive.group import Message, prepare
from ingest_service.receive.headers import parse_header, parse_spool, parse_time
from servicekit.errors import SightlineError
from tests.unit.ingest_service.mutate import mutated
from tests.unit.ingest_service.samples import (
    DECODERS,
    NOW,
    SPOOL,
    header,
    prediction,
    request,
    timestamp,
)

HEADER_RULES: list[tuple[dict[str, Any], str]] = [
    ({"device_id": ""}, "header.device_id"),
    ({"device_id": "d" * 257}, "header.device_id"),
    ({"device_id": "é" * 129}, "header.device_id"),
    ({"spool_id": ""}, "header.spool_id"),
    ({"spool_id": SPOOL.spool_id.upper()}, "header.spool_id"),
    ({"spool_id": SPOOL.spool_id.replace("-", "")}, "header.spool_id"),
    ({"spool_id": SPOOL.spool_id + "\n"}, "header.spool_id"),
    ({"client": "c" * 257}, "header.client"),
    ({"device_time": Timestamp(seconds=253_402_300_800)}, "header.device_time"),
    ({"device_time": Timestamp(nanos=-1)}, "header.device_time"),
    ({"device_monotonic": Duration(seconds=315_576_000_001)}, "header.device_monotonic"),
    ({"device_monotonic": Duration(nanos=-(10**9))}, "header.device_monotonic"),
]


@pytest.mark.parametrize(("fields", "path"), HEADER_RULES)
def test_a_header_that_breaks_a_rule_is_refused_by_field(fields: dict[str, Any], path: str) -> None:
    broken = header()
    broken.MergeFrom(type(broken)(**fields))
    for name, value in fields.items():
        if value == "":
            setattr(broken, name, "")
    with pytest.raises(SightlineError) as caught:
        parse_header(request(head=broken).SerializeToString(), NOW)
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert [violation.field for violation in caught.value.violations] == [path]


ACCOUNT: dict[str, Any] = {
    "waiting_predictions": 2**63 - 1,
    "spool_bytes": 5,
    "oldest_waiting": Duration(seconds=90, nanos=500_000_000),
    "dropped": [DroppedCount(reason=4, count=2), DroppedCount(reason=77, count=1)],  # type: ignore[arg-type]
    "logged": 7,
    "uptime": Duration(),
}
BAD_ACCOUNTS: list[dict[str, Any]] = [
    {"waiting_predictions": -1},
    {"spool_bytes": -(2**63)},
    {"logged": -1},
    {"oldest_waiting": Duration(seconds=-1)},
    {"oldest_waiting": Duration(seconds=2**62)},
    {"uptime": Duration(nanos=10**9)},
    {"uptime": Duration(nanos=-1)},
    {"dropped": [DroppedCount(reason=1, count=-1)]},  # type: ignore[arg-type]
    {"dropped": [DroppedCount(count=1)]},
    {"dropped": [DroppedCount(reason=-4, count=1)]},  # type: ignore[arg-type]
    {"dropped": [DroppedCount(reason=1, count=2**63 - 1)] * 2},  # type: ignore[arg-type]
    {"dropped": [DroppedCount(reason=n, count=1) for n in range(1, 22)]},  # type: ignore[arg-type]
]


def test_an_account_is_read() -> None:
    opened = parse_header(
        request(head=header(account=NodeAccount(**ACCOUNT))).SerializeToString(), NOW
    )
    dropped = {"spool_age": 2, "reason_77": 1}
    assert opened.account == (2**63 - 1, 5, 90.5, dropped, 7, 0.0)
    assert parse_header(request(head=header()).SerializeToString(), NOW).account is None
    empty = parse_header(request(head=header(account=NodeAccount())).SerializeToString(), NOW)
    assert empty.account == (0, 0, None, {}, 0, None)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=list(DECODERS))
@pytest.mark.parametrize("fields", BAD_ACCOUNTS)
def test_an_absurd_account_is_ignored_and_never_stops_the_log(
    fields: dict[str, Any], decoder: Decoder
) -> None:
    head = header(account=NodeAccount(**ACCOUNT | fields))
    payload = request(prediction(1), head=head).SerializeToString()
    opened = parse_header(payload, NOW)
    assert opened.account is None
    group = prepare([Message(0, opened, payload, True)], decoder, NOW)
    assert group.refused == {}
    assert len(group.predictions) == 1


@pytest.mark.parametrize("size", [1, 256])
def test_a_header_at_its_bounds_passes(size: int) -> None:
    head = header(SPOOL._replace(device_id="d" * size), client="c" * size)
    opened = parse_header(request(head=head).SerializeToString(), NOW)
    assert opened.spool.device_id == "d" * size
    assert opened.client == "c" * size
    assert opened.clock_offset_seconds is None


def test_the_clock_offset_is_server_minus_device() -> None:
    head = header(
        device_time=timestamp(NOW - timedelta(seconds=90)),
        device_monotonic=Duration(seconds=12, nanos=500_000_000),
    )
    opened = parse_header(request(head=head).SerializeToString(), NOW)
    assert opened.clock_offset_seconds == 90
    assert opened.device_monotonic == timedelta(seconds=12.5)


def test_a_device_without_a_set_clock_is_welcome() -> None:
    head = header(device_time=Timestamp())
    opened = parse_header(request(head=head).SerializeToString(), NOW)
    assert opened.device_time == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_first_message_without_a_header_is_refused() -> None:
    with pytest.raises(SightlineError, match="header must be given"):
        parse_header(request(prediction(1)).SerializeToString(), NOW)


def test_a_first_message_that_cannot_be_read_is_malformed() -> None:
    with pytest.raises(SightlineError) as caught:
        parse_header(b"\xff", NOW)
    assert (caught.value.code.name, caught.value.reason) == (
        "INVALID_ARGUMENT",
        "MALFORMED_MESSAGE",
    )


def test_damaged_first_messages_are_read_or_refused_with_a_documented_error() -> None:
    reasons = set()
    for payload in mutated(seed=7, count=500):
        try:
            parse_header(payload, NOW)
        except SightlineError as error:
            reasons.add(error.reason)
    assert reasons == {"MALFORMED_MESSAGE", "INVALID_FIELD"}


def test_a_spool_is_named_without_prefix_in_other_requests() -> None:
    with pytest.raises(SightlineError, match=r"^spool_id must be a UUID"):
        parse_spool("d", "x")


def test_times_are_cut_to_microseconds() -> None:
    assert parse_time(Timestamp(seconds=1, nanos=1999), "t").microsecond == 1
