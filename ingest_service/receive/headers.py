"""Parsing and validation of stream headers, and of spool keys and times in other requests."""

import logging
import re
from collections import Counter
from datetime import UTC, datetime, timedelta

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_pb2 import LogHeader, NodeAccount
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from ingest_service.receive.decode import malformed_error
from ingest_service.store.gap_reasons import gap_reason_name
from ingest_service.store.protocol import SpoolKey, StreamOpening
from ingest_service.store.record_types import StreamAccount
from servicekit.errors import invalid
from servicekit.parsing import parse

logger = logging.getLogger(__name__)

MAX_DEVICE_ID_BYTES = 256
MAX_CLIENT_BYTES = 256
MAX_DURATION_SECONDS = 315_576_000_000
"""About 10 000 years: the limit of a `google.protobuf.Duration`."""
MAX_DROPPED = 20
"""Maximum number of reasons in an account."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def parse_header(
    payload: bytes, opened_at: datetime, opened_steady: float | None = None
) -> StreamOpening:
    """Return the opening of a stream, from the header in its first message.

    Args:
        payload: the message.
        opened_at: arrival time by the server's clock, UTC.
        opened_steady: arrival time by the server's steady clock, s; None: not known.

    Raises:
        SightlineError: INVALID_ARGUMENT; the message cannot be read, or breaks a rule of
            `LogHeader`.
        MemoryError: there is not enough memory to read it.
    """
    try:
        message = parse(PredictionLogRequest.FromString, payload)
    except DecodeError as error:
        raise malformed_error(str(error)) from error
    if not message.HasField("header"):
        raise invalid("header", "must be given in the first message of a stream")
    header = message.header
    if (size := len(header.client.encode())) > MAX_CLIENT_BYTES:
        raise invalid("header.client", f"must be at most {MAX_CLIENT_BYTES} bytes, got {size}")
    if header.generation and not _UUID.fullmatch(header.generation):
        raise invalid(
            "header.generation", "must be a UUID of 36 characters in lower case, or empty"
        )
    return StreamOpening(
        parse_spool(header.device_id, header.spool_id, prefix="header."),
        opened_at,
        _device_time(header),
        _device_monotonic(header),
        header.client,
        opened_steady,
        header.generation,
        parse_account(header.account) if header.HasField("account") else None,
    )


def parse_spool(device_id: str, spool_id: str, *, prefix: str = "") -> SpoolKey:
    """Return the spool key of a device id and a spool id.

    Raises:
        SightlineError: INVALID_ARGUMENT; an id breaks a rule of `LogHeader`. The error names the
            field with `prefix` before it.
    """
    if not 1 <= (size := len(device_id.encode())) <= MAX_DEVICE_ID_BYTES:
        rule = f"must be 1 to {MAX_DEVICE_ID_BYTES} bytes, got {size}"
        raise invalid(f"{prefix}device_id", rule)
    if not _UUID.fullmatch(spool_id):
        raise invalid(f"{prefix}spool_id", "must be a UUID of 36 characters in lower case")
    return SpoolKey(device_id, spool_id)


def parse_time(time: Timestamp, field: str) -> datetime:
    """Return a timestamp as a time in UTC, truncated to microseconds.

    Raises:
        SightlineError: INVALID_ARGUMENT; it is no valid `google.protobuf.Timestamp`.
    """
    try:
        return time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise invalid(
            field, "must be from 0001-01-01 to 9999-12-31, with nanos of 0 to 999999999"
        ) from error


def parse_account(account: NodeAccount) -> StreamAccount | None:
    """Return a device's account of its log; None: it breaks a rule.

    An account is beside the log: a device that counts wrongly must not stop logging.
    """
    counts = (account.waiting_predictions, account.spool_bytes, account.logged)
    times = (account.oldest_waiting, account.uptime)
    dropped: Counter[str] = Counter()
    for item in account.dropped:
        dropped[gap_reason_name(item.reason) or ""] += item.count
    is_valid = (
        min(counts) >= 0
        and all(0 <= time.seconds <= MAX_DURATION_SECONDS for time in times)
        and all(0 <= time.nanos < 10**9 for time in times)
        and len(account.dropped) <= MAX_DROPPED
        and all(item.reason > 0 and item.count >= 0 for item in account.dropped)
        and max(dropped.values(), default=0) < 2**63
    )
    if not is_valid:
        logger.debug("an account of a device breaks a rule and is ignored: %s", account)
        return None
    oldest, uptime = (time.seconds + time.nanos / 1e9 for time in times)
    return StreamAccount(
        account.waiting_predictions,
        account.spool_bytes,
        oldest if account.HasField("oldest_waiting") else None,
        dict(dropped),
        account.logged,
        uptime if account.HasField("uptime") else None,
    )


def _device_time(header: LogHeader) -> datetime | None:
    if not header.HasField("device_time"):
        return None
    return parse_time(header.device_time, "header.device_time")


def _device_monotonic(header: LogHeader) -> timedelta | None:
    if not header.HasField("device_monotonic"):
        return None
    time = header.device_monotonic
    if abs(time.seconds) > MAX_DURATION_SECONDS or abs(time.nanos) >= 10**9:
        rule = f"must be within {MAX_DURATION_SECONDS} s, with nanos within 999999999"
        raise invalid("header.device_monotonic", rule)
    return time.ToTimedelta()
