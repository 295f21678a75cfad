"""Item 16 of issue 11: capture times are checked by the device's clock, too."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ingest_service.receive.group import Message, prepare
from ingest_service.receive.ptars_decoder import PtarsDecoder
from tests.unit.ingest_service.samples import (
    NOW,
    header,
    opening,
    prediction,
    request,
    timestamp,
)

DECODER = PtarsDecoder()
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
LOST = datetime(1970, 1, 1, 0, 5, tzinfo=UTC)


def reasons(
    *captured: datetime, now: datetime = NOW, steady: float | None = 100.0, **opened: Any
) -> list[str | None]:
    """Return the rule that each prediction breaks on a stream with this opening."""
    opened = {"opened_at": now, "opened_steady": 100.0, **opened}
    parts = [prediction(n, captured_at=timestamp(at)) for n, at in enumerate(captured, start=1)]
    payload = request(*parts, head=header()).SerializeToString()
    group = prepare([Message(0, opening(**opened), payload, True)], DECODER, now, steady)
    return [
        group.violations[row].reason if row in group.violations else None
        for row in range(len(captured))
    ]


@pytest.mark.parametrize("behind", [timedelta(days=2), timedelta(days=20_000)])
def test_a_server_whose_clock_is_behind_takes_what_the_device_s_bears_out(
    behind: timedelta,
) -> None:
    assert reasons(NOW, now=NOW - behind, device_time=NOW + SECOND) == [None]


def test_without_a_device_clock_the_server_s_decides() -> None:
    edge = NOW + DAY
    assert reasons(edge, edge + SECOND) == [None, "CAPTURED_AT_IN_FUTURE"]


def test_beyond_every_clock_is_the_future() -> None:
    device = NOW + timedelta(days=90)
    edge = device + DAY
    assert reasons(device, edge, edge + SECOND, device_time=device) == [
        None,
        None,
        "CAPTURED_AT_IN_FUTURE",
    ]


def test_a_device_whose_clock_is_behind_may_have_times_of_a_right_one() -> None:
    """For example times from a camera with its own clock."""
    assert reasons(NOW, device_time=NOW - timedelta(days=400)) == [None]


def test_the_device_s_clock_goes_on_while_its_stream_is_open() -> None:
    server = NOW - timedelta(days=30)
    late = NOW + DAY + timedelta(hours=1)
    of_stream = {"now": server, "device_time": NOW}
    assert reasons(late, steady=100.0, **of_stream) == ["CAPTURED_AT_IN_FUTURE"]
    assert reasons(late, steady=100.0 + 3600, **of_stream) == [None]


def test_a_wall_clock_that_jumps_while_a_stream_is_open_changes_nothing() -> None:
    jumped = NOW - timedelta(days=9)
    assert reasons(NOW, now=jumped, opened_at=NOW, device_time=NOW) == [None]
    # Also if the elapsed time comes from the wall clocks: it is never negative.
    assert reasons(NOW, now=jumped, opened_at=NOW, device_time=NOW, steady=None) == [None]


def test_a_device_that_lost_its_clock_logs_from_1970_on() -> None:
    before = datetime(1969, 12, 31, tzinfo=UTC)
    assert reasons(LOST, before, device_time=LOST + SECOND) == [None, "CAPTURED_AT_TOO_EARLY"]
    assert reasons(LOST, device_time=NOW) == ["CAPTURED_AT_TOO_EARLY"]
    assert reasons(LOST) == ["CAPTURED_AT_TOO_EARLY"]


def test_the_largest_times_of_a_device_overflow_nothing() -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert reasons(NOW, device_time=last, steady=1e9) == [None]
    assert reasons(NOW, device_time=datetime(1, 1, 1, tzinfo=UTC)) == [None]


def test_streams_of_one_group_are_judged_each_by_its_own_clock() -> None:
    server, later = NOW - timedelta(days=5), timestamp(NOW)
    groups = [
        Message(
            number,
            opening(opened_at=server, device_time=clock, opened_steady=0.0),
            request(prediction(captured_at=later), head=header()).SerializeToString(),
            True,
        )
        for number, clock in enumerate((NOW, None, server, NOW))
    ]
    assert sorted(prepare(groups, DECODER, server, 0.0).violations) == [1, 2]
