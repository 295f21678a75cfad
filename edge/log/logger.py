"""`PredictionLogger`: hand over a prediction, and it will be in the store exactly once."""

import asyncio
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import grpc

from edge.channel import Endpoint
from edge.endpoints import ingest_endpoint
from edge.log import adapters, orphans
from edge.log.pipeline import LoggerConfig, LogPipeline
from edge.log.record_buffer import OnFull
from edge.log.stats import LoggerStats
from edge.options import LogOptions
from edge.records import Prediction
from edge.settings import EdgeSettings
from edge.spool.directories import default_spool_dir
from servicekit.errors import SightlineError
from servicekit.settings import load

if TYPE_CHECKING:
    from ultralytics.engine.model import Model
    from ultralytics.engine.results import Results

Milestone = Literal["spooled", "committed"]
_AT_EXIT_SECONDS = 2.0


class PredictionLogger:
    """Logs predictions of one device, from any thread, any asyncio loop, and forked processes.

    A prediction waits in memory for at most about 50 ms, then in a spool on the disk for as long as
    it takes, until the ingest service has committed it. A process that is killed loses what was in
    memory and nothing else; one that ends without `close` spools what it can in two seconds.

    A forked process logs into a spool of its own inside `spool_dir`; the process that made the
    logger ships what it leaves behind. Other processes need a `spool_dir` of their own.

    Args:
        target: the ingest service, `host:port` or another gRPC target.
        device_id: name of this device, unique in the fleet, 1 to 256 bytes.
        spool_dir: folder of the spool, made if it is missing. None: `default_spool_dir`.
        credentials: TLS credentials. None: plain text.
        api_key: API key or JWT; not sent in plain text to other machines. None: none is sent.
        api_key_file: file that holds it, read anew for every call. None: `api_key` is meant.
        on_full: what `log` does when memory is full: `block` waits for the disk; the others drop a
            prediction, count it, and declare it to the server as a gap.
        options: bounds and sizes.

    Raises:
        SightlineError: another process uses `spool_dir` (`SPOOL_LOCKED`), or it belongs to another
            device (`SPOOL_OF_ANOTHER_DEVICE`) or a later version (`SPOOL_TOO_NEW`).
        OSError: `spool_dir` is not a folder that this process may write to.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        device_id: str,
        spool_dir: Path | str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        api_key_file: Path | str | None = None,
        on_full: OnFull = "drop_oldest",
        options: LogOptions | None = None,
    ) -> None:
        if not 1 <= len(device_id.encode()) <= 256:
            raise ValueError(f"device_id must have 1 to 256 bytes (got {device_id!r})")
        if on_full not in ("block", "drop_oldest", "drop_newest"):
            raise ValueError(f"on_full must be block, drop_oldest or drop_newest (got {on_full!r})")
        directory = Path(spool_dir) if spool_dir is not None else default_spool_dir(device_id)
        self._config = LoggerConfig(
            Endpoint(target, credentials, api_key, Path(api_key_file) if api_key_file else None),
            device_id,
            directory.absolute(),
            on_full,
            options or LogOptions(),
        )
        self.blocks = on_full == "block"
        """Whether `log` may wait for the disk."""
        self._begin(self._config.directory)
        self._pipeline.open()
        _loggers.add(self)

    @classmethod
    def from_settings(cls, settings: EdgeSettings | None = None) -> Self:
        """Return a logger made of what the settings name.

        Args:
            settings: None: read from `SIGHTLINE_EDGE_*`, the TOML file and the defaults.

        Raises:
            servicekit.settings.SettingsError: a setting cannot be used.
        """
        settings = settings or load(EdgeSettings, None, prog="edge")
        endpoint = ingest_endpoint(settings)
        return cls(
            endpoint.target,
            device_id=settings.device_id,
            spool_dir=settings.spool_dir,
            credentials=endpoint.credentials,
            api_key=endpoint.api_key,
            api_key_file=endpoint.api_key_file,
            on_full=settings.on_full,
            options=settings.log_options(),
        )

    def log(
        self,
        prediction: "Prediction | Results",
        *,
        wait: Milestone | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take a prediction and return within microseconds, whatever disk and network do.

        Args:
            prediction: a record, whose detections may be `DetectionArrays`, or the ultralytics
                `Results` of one picture. Of supervision's `Detections`, `edge.from_supervision`
                makes a record.
            wait: return only when the prediction is on the disk (`spooled`) or in the server's
                store (`committed`). None: at once. Don't wait in an asyncio loop: use `aflush`.
            timeout: seconds to wait at most, here and for room in memory where the policy is
                `block`. None: for as long as it takes.

        Raises:
            TimeoutError: it was not known in time what became of the prediction, which is logged
                all the same; or, with `block`, memory had no room in time, and it is not logged.
                The message says which.
            SightlineError: the prediction one waited for was dropped (`PREDICTION_DROPPED`).
            TypeError: it is neither a `Prediction` nor `Results`.
            ClosedError: the logger is closed, or was before the prediction one waited for was
                committed; it then stays in the spool.
        """
        if not isinstance(prediction, Prediction):
            prediction = _adapted(prediction)
        if wait is None:
            self._put(prediction, timeout)
        else:
            deadline = None if timeout is None else time.monotonic() + timeout
            ordinal = self._pipeline.buffer.add(prediction, timeout)
            left = None if deadline is None else deadline - time.monotonic()
            self._wait(ordinal, wait, left)

    __call__ = log

    def attach(
        self,
        model: "Model",
        *,
        model_name: str | None = None,
        model_version: str = "",
        **labels: str,
    ) -> Callable[[], None]:
        """Log all that an ultralytics model predicts or tracks from now on, streams included.

        No other line of the program needs to change. A picture is logged when its result is
        complete, just before the program gets it.

        Args:
            model: such as `YOLO("yolov8n.pt")`.
            model_name: name of the model; None: its file's name without the suffix.
            model_version: its version; empty: not known.
            labels: of each prediction; see `Prediction.labels`.

        Returns:
            What ends it, to be called before the logger is closed if the model is used after that.

        Raises:
            TypeError: it is no ultralytics model.
            ValueError: a label or a name cannot be logged.
        """
        name = adapters.name_of(model) if model_name is None else model_name
        Prediction("-", name, model_version=model_version, labels=labels)  # fails here or never

        def take(results: "Results") -> None:
            self.log(
                adapters.from_ultralytics(
                    results, model_name=name, model_version=model_version, labels=labels
                )
            )

        return adapters.attach(model, take)

    def flush(self, timeout: float | None = None, until: Milestone = "spooled") -> bool:
        """Wait until everything that was logged before is spooled, or committed.

        Args:
            timeout: seconds to wait at most. None: for as long as it takes.
            until: `committed` includes what earlier processes have left in the spool, and forked
                ones that have ended.

        Returns:
            True: everything is, each prediction as a row. False: it was not in time, or something
            was dropped, whatever the reason (`stats().dropped`): a policy, a cap, a disk that does
            not write. What was dropped makes one flush say False, the next is about what came
            after. Of `until="spooled"` and `until="committed"` each tells for itself.
        """
        return self._pipeline.flush(timeout, committed=until == "committed")

    def close(self, timeout: float = 5.0) -> bool:
        """Spool what is logged, ships for as long as the server answers, and end the threads.

        What is not shipped in time stays in the spool, for the next process.

        Args:
            timeout: seconds to take at most (ending the threads may take some tenths more).

        Returns:
            Whether everything is spooled, and nothing was dropped since the last `flush`.
        """
        return self._pipeline.close(timeout)

    def stats(self) -> LoggerStats:
        """Return the counts so far."""
        return self._pipeline.stats()

    # A timeout is passed on: an `asyncio.timeout` would leave the thread that waits behind.
    async def aflush(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        until: Milestone = "spooled",
    ) -> bool:
        """Do what `flush` does, without blocking the loop."""
        return await asyncio.to_thread(self.flush, timeout, until)

    async def aclose(self, timeout: float = 5.0) -> bool:  # noqa: ASYNC109
        """Do what `close` does, without blocking the loop."""
        return await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _begin(self, directory: Path) -> None:
        self._pipeline = LogPipeline(self._config, directory)
        self._put = self._pipeline.buffer.put
        # Also when the process ends; in any other process it does nothing.
        weakref.finalize(self, self._pipeline.abandon, _AT_EXIT_SECONDS)

    def _wait(self, ordinal: int, wait: Milestone, timeout: float | None) -> None:
        reason = self._pipeline.wait_for_outcome(ordinal, timeout, committed=wait == "committed")
        if reason is not None:
            raise SightlineError(
                grpc.StatusCode.DATA_LOSS,
                "PREDICTION_DROPPED",
                f"the prediction was dropped: {reason.name}",
                metadata={"gap_reason": reason.name},
            )

    def _after_fork(self) -> None:
        _inherited.append(self._pipeline)
        self._pipeline.release_in_child()
        self._begin(orphans.new_fork_directory(self._config.directory))


def _adapted(candidate: object) -> Prediction:
    if adapters.is_ultralytics(candidate):
        return adapters.from_ultralytics(candidate)
    if adapters.is_supervision(candidate):
        raise TypeError(
            "prediction must say of which picture it is, which supervision's Detections do not: "
            "make one of them with edge.from_supervision"
        )
    raise TypeError(
        "prediction must be an edge.Prediction or the ultralytics Results of one picture "
        f"(got {type(candidate).__name__})"
    )


_loggers: "weakref.WeakSet[PredictionLogger]" = weakref.WeakSet()
_inherited: list[LogPipeline] = []  # a forked process must not let SQLite close the parent's file


# Called by the interpreter around a fork, for loggers of this module: not for users to call.
def _fork_in_child() -> None:
    for logger in list(_loggers):
        logger._after_fork()  # noqa: SLF001


def _fork_in_parent() -> None:
    for logger in list(_loggers):
        logger._pipeline.ship_orphans()  # noqa: SLF001


os.register_at_fork(after_in_child=_fork_in_child, after_in_parent=_fork_in_parent)
