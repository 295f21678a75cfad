"""The shipper thread, which sends the spool to the ingest service as `edge.ship.core` decides."""

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence

import grpc
import tenacity
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2

from edge import wire
from edge.channel import Endpoint
from edge.options import Compression
from edge.ship.account import LogCounts, node_account
from edge.ship.call_gate import CallGate
from edge.ship.core import (
    Acknowledge,
    Action,
    BackOff,
    FetchWatermark,
    GiveUp,
    Pause,
    Renew,
    Rewind,
    Send,
    Sent,
    ShipCore,
)
from edge.ship.progress import Progress
from edge.spool.entries import Entry, GapReason, Row
from edge.spool.lineage import Agreement, SpoolOpening, agreement, opening_at
from edge.spool.rows import up_to
from edge.spool.spool import ReplacedError, Spool
from servicekit.distribution import version
from servicekit.errors import Category, SightlineError

logger = logging.getLogger(__name__)

_LOG = "/sightline.ingest.v1.IngestService/PredictionLog"
_WATERMARK = "/sightline.ingest.v1.IngestService/GetWatermark"
_STREAM_BYTES = 4 << 20  # limit for the entries that one stream holds in memory
_JITTER = tenacity.wait_random_exponential(multiplier=0.2, max=15)
_REFUSED_SECONDS = 5.0
"""Minimum wait after a refused credential, which only a person or a new credential can fix."""
_MIN_PAUSE_SECONDS = 0.05
_MAX_SLEEP_SECONDS = 3600.0
"""Limit for the wait that a server requests: a server bug must not stop a device from shipping."""
_EXPECTED = (SightlineError, OSError, sqlite3.Error)

_CLIENT = f"sightline-edge/{version()}"


class _StopError(Exception):
    """The exception that ends the shipper's loop."""


class Shipper:
    """A sender that ships a spool until it is stopped, and retries after every failure.

    Args:
        spool: the spool to ship.
        endpoint: the ingest service.
        progress: the counters to update. Its `hurry` ends the wait for a full batch.
        batch_size: limit for the predictions in one message.
        batch_bytes: limit for the bytes of one message; a larger prediction is sent alone.
        compression: compression of messages on the wire, `none` or `gzip`.
        batch_timeout_seconds: how long a prediction waits for a full batch at most.
        stream_size: limit for the predictions in one stream.
        account: returns the node's account of its log for the header of a stream. None: only the
            spool is counted.
    """

    def __init__(
        self,
        spool: Spool,
        endpoint: Endpoint,
        progress: Progress,
        *,
        batch_size: int,
        batch_bytes: int = wire.MAX_MESSAGE,
        compression: Compression = "none",
        batch_timeout_seconds: float,
        stream_size: int,
        account: Callable[[], ingest_pb2.NodeAccount] | None = None,
    ) -> None:
        self._spool = spool
        self._endpoint = endpoint
        self._progress = progress
        self._batch_size = batch_size
        self._batch_bytes = batch_bytes
        self._batch_timeout_seconds = batch_timeout_seconds
        self._stream_size = stream_size
        self._account = account or (lambda: node_account([spool], LogCounts()))
        self._until_empty = False
        self._stopping = threading.Event()
        self._gate = CallGate()
        # Set on the channel: grpcio 1.85 ignores the compression of a call with a request stream.
        gzip_options = [("grpc.default_compression_algorithm", int(grpc.Compression.Gzip))]
        with self._gate.inside():
            self._channel = endpoint.channel(gzip_options if compression == "gzip" else ())
        # The spool holds serialised entries, so the request needs no serializer.
        self._log = self._channel.stream_unary(
            _LOG,
            request_serializer=None,
            response_deserializer=ingest_service_pb2.PredictionLogResponse.FromString,
        )
        self._watermark = self._channel.unary_unary(
            _WATERMARK,
            request_serializer=ingest_service_pb2.GetWatermarkRequest.SerializeToString,
            response_deserializer=ingest_service_pb2.GetWatermarkResponse.FromString,
        )
        self._begin()

    def run(self, *, until_empty: bool = False) -> None:
        """Ship until stopped; the body of the thread.

        Args:
            until_empty: True: return when nothing is pending.
        """
        self._until_empty = until_empty
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_not_exception_type(_StopError),
            wait=_seconds_to_wait,
            sleep=self._sleep,
            before_sleep=self._note_failure,
            reraise=True,
        )
        try:
            while True:
                retrying(self._round)
        except _StopError:
            pass
        finally:
            with self._gate.inside():
                self._channel.close()

    def stop(self) -> None:
        """End `run` at once. A stream in progress is cancelled and will be sent again."""
        self._stopping.set()
        self._gate.close()
        with self._progress.update():
            pass

    def _begin(self) -> None:
        """Create the core for the current state of the spool."""
        identity = self._spool.identity
        self._spool_id = identity.spool_id
        self._device_id = identity.device_id
        self._core = ShipCore(
            acknowledged=identity.acknowledged,
            sent_through=self._spool.sent_through,
            opened_at=self._spool.opened_at,
            stream_size=self._stream_size,
        )

    def _round(self) -> None:
        """Send one stream and process its response.

        Raises:
            Exception: an attempt failed; the caller retries after a back-off.
        """
        if self._spool.identity.spool_id != self._spool_id:
            self._begin()
        self._wait_for_work()
        try:
            while not self._step():
                pass
        except ReplacedError:
            return
        if self._progress.ship_error is not None:
            logger.info("ship: the ingest service is answering again")
        with self._progress.update():
            self._progress.ship_error = None

    def _wait_for_work(self) -> None:
        """Wait until there are entries to send and a batch is full or has waited long enough."""

        def is_over() -> bool:
            return self._stopping.is_set() or self._spool.identity.spool_id != self._spool_id

        def pending() -> int:
            return self._spool.identity.last - self._core.position

        if self._until_empty and not pending():
            raise _StopError
        self._progress.wait(lambda: is_over() or pending() > 0, None)
        self._progress.wait(
            lambda: is_over() or self._progress.hurry > 0 or pending() >= self._stream_size,
            self._batch_timeout_seconds,
        )
        if self._stopping.is_set():
            raise _StopError

    def _step(self) -> bool:
        """Carry out the core's next step; return True if the round is complete."""
        step = self._core.next()
        if isinstance(step, FetchWatermark):
            actions = self._fetch_watermark(step)
            self._apply(actions)
            return any(isinstance(action, Renew) for action in actions)
        entries = self._entries(step)
        if step.max_entries and not entries:
            return True
        actions = self._send(step, entries)
        self._apply(actions)
        return any(isinstance(action, Acknowledge | Renew) for action in actions)

    def _fetch_watermark(self, step: FetchWatermark) -> list[Action]:
        request = ingest_service_pb2.GetWatermarkRequest(
            device_id=self._device_id, spool_id=self._spool_id
        )
        try:
            response = self._gate.run(
                lambda: self._watermark.future(
                    request, timeout=step.timeout, metadata=self._endpoint.metadata
                )
            )
        except SightlineError as error:
            return self._core.call_failed(self._count_failure(error), None)
        return self._core.watermark_received(response.committed_through, self._agreed(response))

    def _agreed(self, response: ingest_service_pb2.GetWatermarkResponse) -> Agreement | None:
        """Return how far the server has what was spooled here, or None if it cannot tell."""
        identity = self._spool.identity
        committed = [SpoolOpening(run.id, run.after_sequence) for run in response.generations]
        return agreement(
            identity.lineage, identity.root, identity.last, committed, response.committed_through
        )

    def _entries(self, step: Send) -> list[Entry]:
        """Return the entries for a stream, which must all be from one opening of the spool."""
        if not step.max_entries:
            return []
        entries = self._spool.read(self._spool_id, step.after, step.max_entries, _STREAM_BYTES)
        # Read the lineage after the entries: it then contains the opening of each.
        _, end = opening_at(self._spool.identity.lineage, step.after + 1)
        return up_to(entries[: step.max_entries], end)

    def _send(self, step: Send, entries: Sequence[Entry]) -> list[Action]:
        sent = Sent(
            last=entries[-1].sequence if entries else step.after,
            entries=len(entries),
            is_prediction=bool(entries) and isinstance(entries[-1], Row),
        )
        messages = wire.messages(
            self._header(step.after + 1),
            map(_encoded, entries),
            self._batch_size,
            self._batch_bytes,
        )
        self._count_sent(entries)
        self._spool.sending(self._spool_id, sent.last)
        self._core.sending(sent)
        try:
            response = self._gate.run(
                lambda: self._log.future(
                    iter(messages), timeout=step.timeout, metadata=self._endpoint.metadata
                )
            )
        except SightlineError as error:
            return self._core.call_failed(self._count_failure(error), sent)
        self._note_rejections(response)
        # Duplicates within one generation are the same predictions, whichever copy sent them.
        unproven = 0 if response.generation else response.duplicates
        return self._core.stream_answered(response.committed_through, sent, unproven)

    def _apply(self, actions: Sequence[Action]) -> None:
        try:
            self._carry_out(actions)
        except (OSError, sqlite3.Error):  # such as a full disk
            self._core.restart(self._spool.identity.acknowledged)
            raise

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Acknowledge(through):
                    self._acknowledge(through)
                case GiveUp(sequence):
                    logger.error(
                        "ship: prediction %d becomes a gap: the server cannot read it, even alone",
                        sequence,
                    )
                    self._spool.give_up(self._spool_id, sequence, GapReason.UNREADABLE)
                case Rewind(through):
                    logger.error(
                        "ship: the server's store ends at sequence %d although more was confirmed: "
                        "it was replaced, and what is deleted here is declared a gap",
                        through,
                    )
                    self._spool.rewind(self._spool_id, through)
                case Renew(is_derived):
                    logger.error(
                        "ship: the server has predictions of spool %s that are not from here: the "
                        "spool was restored from a backup or has a copy that also ships. Its %d "
                        "pending entries move to a new spool_id",
                        *(self._spool_id, self._spool.identity.pending),
                    )
                    self._spool.renew(self._spool_id, is_derived=is_derived)
                case Pause(error):
                    self._pause(error)
                case BackOff(error):
                    raise error

    def _pause(self, error: SightlineError) -> None:
        with self._progress.update():
            self._progress.ship_error = str(error)
        # Jitter: devices that share a credential must not all return at the same time.
        seconds = max(error.retry_after or 0.0, _MIN_PAUSE_SECONDS)
        self._sleep(seconds * random.uniform(1.0, 1.25))  # noqa: S311 - jitter, not a secret
        with self._progress.update():
            self._progress.ship_error = None

    def _acknowledge(self, through: int) -> None:
        deleted = self._spool.acknowledge(self._spool_id, through)
        with self._progress.update():
            self._progress.delivered += deleted
            self._progress.committed = self._spool.committed

    def _count_sent(self, entries: Sequence[Entry]) -> None:
        before = self._spool.sent_through
        resent = sum(entry.sequence <= before for entry in entries)
        with self._progress.update():
            self._progress.sent += len(entries)
            self._progress.resent += resent

    def _count_failure(self, error: SightlineError) -> SightlineError:
        """Count a failed call, and return its error in words that name a wrong address."""
        with self._progress.update():
            self._progress.failed_calls += 1
        return self._endpoint.explain(error, "ingest", "ingest_target (--ingest)")

    def _header(self, sequence: int) -> bytes:
        """Return the header of a stream that begins with a sequence."""
        generation, _ = opening_at(self._spool.identity.lineage, sequence)
        header = ingest_pb2.LogHeader(
            device_id=self._device_id,
            spool_id=self._spool_id,
            client=_CLIENT,
            generation=generation,
            account=self._account(),
        )
        header.device_time.FromNanoseconds(time.time_ns())
        header.device_monotonic.FromNanoseconds(time.monotonic_ns())
        return header.SerializeToString()

    def _note_rejections(self, response: ingest_service_pb2.PredictionLogResponse) -> None:
        if not response.rejected:
            return
        with self._progress.update():
            self._progress.rejected += response.rejected
        for rejection in response.rejections[:3]:
            logger.warning(
                "ship: the server rejected prediction %d: field %s: %s",
                *(rejection.sequence, rejection.field, rejection.reason),
            )

    def _note_failure(self, state: tenacity.RetryCallState) -> None:
        error = _failure(state)
        if not isinstance(error, _EXPECTED):
            logger.error("ship: unexpected error, trying again", exc_info=error)
        elif self._progress.ship_error == str(error):
            pass  # logged before
        elif _is_refused(error):
            logger.error(
                "ship: the ingest service refuses this device's credential; predictions wait in the"
                " spool until it is fixed: %s",
                error,
            )
        else:
            logger.warning("ship: failed, trying again until it succeeds: %s", error)
        with self._progress.update():
            self._progress.ship_error = str(error)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(min(seconds, _MAX_SLEEP_SECONDS)):
            raise _StopError


def _encoded(entry: Entry) -> bytes:
    if isinstance(entry, Row):
        return wire.prediction_entry(entry.prediction)
    return wire.gap_entry(entry.first, entry.last, entry.reason, entry.declared_at)


def _failure(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _seconds_to_wait(state: tenacity.RetryCallState) -> float:
    """Return the wait before a retry: the server's request plus back-off with full jitter."""
    error = _failure(state)
    retry_after = error.retry_after if isinstance(error, SightlineError) else None
    minimum = _REFUSED_SECONDS if _is_refused(error) else 0.0
    return max(retry_after or 0.0, minimum) + _JITTER(state)


def _is_refused(error: BaseException | None) -> bool:
    return isinstance(error, SightlineError) and error.category is Category.AUTH
