"""Conversion of devices, the ledger, gaps and rejections to the messages of the contract."""

from collections.abc import Iterable
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from sightline.ingest.v1 import ingest_pb2, reads_pb2

from ingest_service.store.gap_reasons import gap_reason_number
from ingest_service.store.record_types import (
    DeviceRecord,
    GapRecord,
    LastStream,
    LedgerRecord,
    ReasonCount,
    RejectedRecord,
    StreamAccount,
)


def device_message(record: DeviceRecord, window: timedelta) -> reads_pb2.Device:
    """Return a device as a message.

    Args:
        record: the device.
        window: the time in which its predictions were counted.
    """
    seconds = window.total_seconds()
    message = reads_pb2.Device(
        device_id=record.device_id,
        predictions_per_second=record.in_window / seconds,
        predictions_per_second_before=record.in_window_before / seconds,
        predictions=record.predictions,
        defects=record.defects,
        rejected=record.rejected,
        gap_sequences=record.gap_sequences,
        predictions_by_hour=record.by_hour,
    )
    if record.last_received_us is not None:
        message.last_received_at.FromMicroseconds(record.last_received_us)
    if record.stream is not None:
        _add_stream(message, record.stream)
    return message


def _add_stream(message: reads_pb2.Device, stream: LastStream) -> None:
    message.client = stream.client
    message.stream_opened_at.FromMicroseconds(stream.opened_us)
    if stream.clock_offset_seconds is not None:
        message.clock_offset.CopyFrom(_duration(stream.clock_offset_seconds))
    if stream.account is not None:
        message.account.CopyFrom(_account(stream.account))


def _account(account: StreamAccount) -> ingest_pb2.NodeAccount:
    oldest, uptime = account.oldest_waiting_seconds, account.uptime_seconds
    return ingest_pb2.NodeAccount(
        waiting_predictions=account.waiting_predictions,
        spool_bytes=account.spool_bytes,
        oldest_waiting=None if oldest is None else _duration(oldest),
        dropped=[
            # The number may be of a newer contract, which the stubs do not type.
            ingest_pb2.DroppedCount(reason=gap_reason_number(name), count=count)  # type: ignore[arg-type]
            for name, count in account.dropped.items()
        ],
        logged=account.logged,
        uptime=None if uptime is None else _duration(uptime),
    )


def ledger_message(record: LedgerRecord) -> reads_pb2.LedgerEntry:
    """Return the account of a spool, or of several, as a message."""
    message = reads_pb2.LedgerEntry(
        device_id=record.device_id,
        spool_id=record.spool_id,
        accepted=record.accepted,
        rejected=record.rejected,
        gap_sequences=record.gap_sequences,
        committed_through=record.committed_through,
        duplicates=record.duplicates,
        expired=record.expired,
        balanced=record.balanced,
        gaps_by_reason=_counts(record.gaps_by_reason),
        rejected_by_reason=_counts(record.rejected_by_reason),
    )
    if record.updated_us is not None:
        message.updated_at.FromMicroseconds(record.updated_us)
    return message


def gap_message(record: GapRecord) -> reads_pb2.StoredGap:
    """Return a gap as a message."""
    gap = ingest_pb2.Gap(
        first_sequence=record.first_sequence,
        last_sequence=record.last_sequence,
        reason=gap_reason_number(record.reason),  # type: ignore[arg-type]  # as in `_account`
    )
    if record.declared_us is not None:
        gap.declared_at.FromMicroseconds(record.declared_us)
    message = reads_pb2.StoredGap(device_id=record.device_id, spool_id=record.spool_id, gap=gap)
    message.received_at.FromMicroseconds(record.received_us)
    return message


def rejection_message(record: RejectedRecord) -> reads_pb2.StoredRejection:
    """Return a rejected prediction as a message."""
    message = reads_pb2.StoredRejection(
        device_id=record.device_id,
        spool_id=record.spool_id,
        rejection=ingest_pb2.Rejection(
            sequence=record.sequence, field=record.field, reason=record.reason
        ),
        original=record.original,
    )
    message.received_at.FromMicroseconds(record.received_us)
    return message


def _counts(counts: Iterable[ReasonCount]) -> list[ingest_pb2.CountByKey]:
    return [ingest_pb2.CountByKey(key=count.reason, count=count.sequences) for count in counts]


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
