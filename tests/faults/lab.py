"""A node and a server in one thread, under a test's control of each step and fault.

Buffer, writer, spool (a real file) and shipper are the real ones, without their threads; the server
is the fake of the tests, without its socket. A crash leaves on the disk what a killed process
leaves, at any of the points between two changes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_status import rpc_status
from sightline.ingest.v1 import ingest_service_pb2

from edge.channel import Endpoint
from edge.log.record_buffer import RecordBuffer
from edge.log.writer import Writer
from edge.options import OnFull
from edge.ship.progress import Progress
from edge.ship.shipper import Shipper
from edge.spool.caps import Lost, SpoolLimits
from edge.spool.entries import Dropped, Gap, GapReason, Row
from edge.spool.file import SpoolFile
from edge.spool.spool import Spool
from servicekit.errors import SightlineError, to_status
from tests.fakes.ingest import FakeIngest, Stored

DEVICE = "gate-1"


class CrashError(BaseException):
    """The node is killed here; `except Exception` does not catch it."""


@dataclass
class Crashes:
    """The crash point of a node: it is killed after a number of points."""

    folder: Path
    left: int | None = None
    """Points until the crash; None for no crash."""
    disk: dict[str, bytes] | None = None
    """Contents of the disk at the crash."""

    def point(self) -> None:
        """Mark a point at which a process could be killed with work half done."""
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.kill()
            raise CrashError

    def kill(self) -> None:
        """Save the current contents of the disk."""
        self.left = None
        self.disk = {
            file.name: file.read_bytes() for file in self.folder.iterdir() if file.is_file()
        }

    def put_back(self) -> None:
        """Restore the contents of the disk, in the same files."""
        assert self.disk is not None
        for file in self.folder.iterdir():
            if file.is_file() and file.name not in self.disk:
                file.unlink()
        for name, data in self.disk.items():
            (self.folder / name).write_bytes(data)
        self.disk = None

    def watch(self, file: SpoolFile) -> None:
        """Add a point on each side of every COMMIT of a file."""
        transaction = file.transaction

        @contextmanager
        def watched(**how: Any) -> Iterator[None]:
            with transaction(**how):
                yield
                self.point()
            self.point()

        file.transaction = watched  # type: ignore[method-assign] # of this object alone


class FailedCallError(grpc.RpcError):
    """The error of a failed call."""

    def __init__(self, error: SightlineError) -> None:
        super().__init__(error)
        self._status = rpc_status.to_status(to_status(error))

    def code(self) -> grpc.StatusCode:
        return self._status.code

    def details(self) -> str:
        return self._status.details

    def trailing_metadata(self) -> Any:
        return self._status.trailing_metadata


class _Context:
    """The server's context of a call."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def abort_with_status(self, status: Any) -> None:
        error = FailedCallError.__new__(FailedCallError)
        error._status = status
        raise error


class _Call:
    """A finished call."""

    def __init__(self, handler: Callable[[Any, Any], Any], request: Any) -> None:
        self._answer, self._error = None, None
        try:
            self._answer = handler(request, _Context())
        except grpc.RpcError as error:
            self._error = error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._answer

    def cancel(self) -> bool:
        return False


@dataclass
class Line:
    """The channel to the server, which can be cut.

    Attributes:
        down: number of next calls that do not arrive.
        cut_after: number of committed messages after which the next stream breaks.
        limited_after: likewise, with the server's error about its limit.
        meanwhile: actions of others while the next stream is in flight.
        after_watermark: actions of others between the next GetWatermark and its use.
    """

    server: FakeIngest
    crashes: Crashes
    down: int = 0
    cut_after: int | None = None
    limited_after: int | None = None
    meanwhile: list[Callable[[], None]] = field(default_factory=list)
    after_watermark: list[Callable[[], None]] = field(default_factory=list)

    def stream_unary(self, *_: object, **__: object) -> "_Method":
        return _Method(self._log)

    def unary_unary(self, *_: object, **__: object) -> "_Method":
        return _Method(self._ask)

    def close(self) -> None:
        pass

    def calm(self) -> None:
        """End every fault."""
        self.down, self.cut_after, self.limited_after = 0, None, None
        self.meanwhile.clear()
        self.after_watermark.clear()

    def _ask(self, request: ingest_service_pb2.GetWatermarkRequest, context: Any) -> Any:
        self._arrive()
        answer = self.server._watermark(request, context)
        after_watermark, self.after_watermark = self.after_watermark, []
        for action in after_watermark:
            action()
        return answer

    def _log(self, messages: Iterator[bytes], context: Any) -> Any:
        self._arrive()
        answer = self.server._log(self._on_its_way(list(messages)), context)
        self.crashes.point()
        return answer

    def _arrive(self) -> None:
        self.crashes.point()
        if self.down:
            self.down -= 1
            raise FailedCallError(
                SightlineError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "no connection")
            )

    def _on_its_way(self, messages: Sequence[bytes]) -> Iterator[bytes]:
        cut, self.cut_after = self.cut_after, None
        limited, self.limited_after = self.limited_after, None
        meanwhile, self.meanwhile = self.meanwhile, []
        for number, message in enumerate(messages):
            if number == cut:
                raise FailedCallError(
                    SightlineError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "connection lost")
                )
            if number == limited:
                raise FailedCallError(_limit(message, messages[0], self.server))
            yield message
            while meanwhile:
                meanwhile.pop()()


@dataclass
class _Method:
    handler: Callable[[Any, Any], Any]

    def future(self, request: Any, **_: object) -> _Call:
        return _Call(self.handler, request)


def _limit(message: bytes, first: bytes, server: FakeIngest) -> SightlineError:
    header = ingest_service_pb2.PredictionLogRequest.FromString(first).header
    stored = server.spools.get((header.device_id, header.spool_id), Stored())
    # A stream that is refused at its beginning gets no committed position.
    metadata = {} if message is first else {"committed_through": str(stored.committed_through)}
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        "too much",
        retry_after=3.0,
        metadata=metadata,
    )


@dataclass
class Clocks:
    """The clocks of the machine."""

    wall: float = 1_800_000_000.0
    steady: float = 100.0


class Ledger:
    """The spool's promises by sequence, recorded on its callers' side.

    Attributes:
        predictions: predictions by their sequence.
        why: sequences that will never be sent, and the reason.
    """

    def __init__(self) -> None:
        self.predictions: dict[int, bytes] = {}
        self.why: dict[int, GapReason] = {}
        self.spooled_at: dict[int, float] = {}
        self.last = 0
        self.half_done: Sequence[bytes | Dropped] | None = None
        """Entries of an append that a crash interrupted."""

    def append(self, entries: Sequence[bytes | Dropped], steady: float) -> None:
        """Record appended entries."""
        for entry in entries:
            for _ in range(entry.count if isinstance(entry, Dropped) else 1):
                self.last += 1
                self.spooled_at[self.last] = steady
                if isinstance(entry, Dropped):
                    self.why[self.last] = entry.reason
                else:
                    self.predictions[self.last] = entry

    def lose(self, first: int, last: int, reason: GapReason) -> None:
        """Record a lost range."""
        for sequence in range(first, last + 1):
            if sequence not in self.why or reason is GapReason.RELEASED:
                self.why[sequence] = reason


class WatchedSpool(Spool):
    """A spool that records its promises in the ledger and checks them."""

    def __init__(self, folder: Path, limits: SpoolLimits, progress: Progress, lab: "Lab") -> None:
        self._lab = lab
        self._told = progress.lost
        clocks = lab.clocks
        super().__init__(
            folder,
            DEVICE,
            limits,
            self._on_loss,
            wall=lambda: clocks.wall,
            steady=lambda: clocks.steady,
        )

    def append(self, entries: Sequence[bytes | Dropped]) -> None:
        ledger = self._lab.ledger
        ledger.half_done = list(entries)
        before = len(self._lab.losses)
        super().append(entries)
        ledger.half_done = None
        ledger.append(entries, self._lab.clocks.steady)
        assert self.identity.last == ledger.last
        self._take_losses(before, GapReason.SPOOL_BYTES)

    def maintain(self) -> None:
        before = len(self._lab.losses)
        super().maintain()
        self._take_losses(before, GapReason.SPOOL_AGE)

    def give_up(self, spool_id: str, sequence: int, reason: GapReason) -> None:
        before = len(self._lab.losses)
        super().give_up(spool_id, sequence, reason)
        self._take_losses(before, GapReason.UNREADABLE)

    def rewind(self, spool_id: str, through: int) -> None:
        before = self.identity.acknowledged
        assert self._lab.watermark <= through < before, "the server has these"
        super().rewind(spool_id, through)
        self._lab.ledger.lose(through + 1, before, GapReason.RELEASED)

    def renew(self, spool_id: str, *, is_derived: bool = False) -> None:
        raise AssertionError("nobody has made a copy of this spool")

    def _on_loss(self, lost: Lost) -> None:
        shift = self.spooled - self.identity.last
        self._lab.losses.append(
            Lost(lost.first - shift, lost.last - shift, lost.reason, lost.count)
        )
        self._told(lost)

    def _take_losses(self, before: int, reason: GapReason) -> None:
        for lost in self._lab.losses[before:]:
            assert lost.reason is reason
            self._lab.check_loss(lost)
            self._lab.ledger.lose(lost.first, lost.last, lost.reason)


@dataclass
class Node:
    """The parts of a logger in one process."""

    buffer: RecordBuffer
    progress: Progress
    spool: WatchedSpool
    writer: Writer
    shipper: Shipper


@dataclass(frozen=True)
class Plan:
    """The options of the node."""

    max_bytes: int
    max_age: float
    on_full: OnFull
    batch_size: int
    stream_size: int


class Lab:
    """The node, the server and the line between them."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.plan = plan
        self.folder = folder / "spool"
        self.folder.mkdir()
        self.clocks = Clocks()
        self.ledger = Ledger()
        self.losses: list[Lost] = []
        self.crashes = Crashes(self.folder)
        self.server = FakeIngest(unreadable=lambda action: action.image_id.startswith("poison"))
        self.line = Line(self.server, self.crashes)
        self.waits: list[float] = []
        self.node = self._start()

    @property
    def stored(self) -> Stored:
        """The server's state of the spool."""
        return self.server.spools.get((DEVICE, self.node.spool.identity.spool_id), Stored())

    @property
    def watermark(self) -> int:
        """The last sequence up to which the server has everything."""
        return self.stored.committed_through

    def crash(self) -> None:
        """Kill the node, unless it is dead already, and restart it."""
        if self.crashes.disk is None:
            self.crashes.kill()
        spool = self.node.spool
        spool._file.close()
        spool._superblock_file.close()
        spool._folder_lock.release()
        self.crashes.put_back()
        self.node = self._start()
        self._learn()

    def restart(self) -> None:
        """Close the node and restart it."""
        self.crashes.left = None
        self.node.writer._turn()
        self.node.spool.close()
        self.node = self._start()

    def roll_back(self, spools: dict[tuple[str, str], Stored]) -> None:
        """Restore an earlier store of the server."""
        self.server.spools = deepcopy(spools)

    def check_loss(self, lost: Lost) -> None:
        """Fail unless there was a reason to lose this range."""
        identity = self.node.spool.identity
        if lost.reason is GapReason.UNREADABLE:
            assert lost.first == lost.last
            assert b"poison" in self.ledger.predictions[lost.first]
            return
        assert lost.first == identity.acknowledged + 1, "not the oldest"
        if lost.reason is GapReason.SPOOL_AGE:
            spooled_at = self.ledger.spooled_at[lost.last]
            assert self.clocks.steady - spooled_at >= self.plan.max_age

    def _start(self) -> Node:
        plan = self.plan
        progress = Progress()
        limits = SpoolLimits(plan.max_bytes, plan.max_age, 0)
        spool = WatchedSpool(self.folder, limits, progress, self)
        buffer = RecordBuffer(plan.on_full, 8, 1 << 24, lambda: None, lambda: None)
        writer = Writer(buffer, lambda: spool, progress)
        writer.open()
        writer._wait = lambda: None  # type: ignore[method-assign] # no other thread runs
        writer._maintained_at = float("inf")
        self.crashes.watch(spool._file)
        shipper = Shipper(
            spool,
            _EndpointTo(self.line),
            progress,
            batch_size=plan.batch_size,
            batch_timeout_seconds=0.0,
            stream_size=plan.stream_size,
        )
        shipper._sleep = self.waits.append  # type: ignore[assignment,method-assign] # no real time
        return Node(buffer, progress, spool, writer, shipper)

    def _learn(self) -> None:
        """Update the ledger with what a killed process had done."""
        ledger, identity = self.ledger, self.node.spool.identity
        half_done, ledger.half_done = ledger.half_done, None
        if identity.last != ledger.last:
            assert half_done is not None, "sequences out of nowhere"
            ledger.append(half_done, self.clocks.steady)
        assert identity.last == ledger.last, "a part of an append"
        for entry in self.entries():
            if isinstance(entry, Gap):
                ledger.lose(entry.first, entry.last, entry.reason)

    def entries(self) -> Sequence[Row | Gap]:
        """Return the pending entries of the spool; fail if there is a hole."""
        file = self.node.spool._file
        entries, missing = file.read(file.identity.acknowledged, 1 << 20, 1 << 40)
        assert missing == []
        return entries


class _EndpointTo(Endpoint):
    """An endpoint whose channel is this line."""

    def __init__(self, line: Line) -> None:
        super().__init__("unused")
        object.__setattr__(self, "_line", line)

    def channel(self, options: Any = ()) -> Any:
        return self._line  # type: ignore[attr-defined] # set above, on a frozen class
