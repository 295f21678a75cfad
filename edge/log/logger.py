"""`PredictionLogger`, which stores each logged prediction exactly once on the server."""

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypedDict, get_args

import grpc

from edge.channel import Endpoint
from edge.endpoints import ingest_endpoint
from edge.log import adapters, orphans, supervision_adapters
from edge.log.pipeline import LoggerConfig, LogPipeline
from edge.log.stats import LoggerStats
from edge.names import model_name_of
from edge.options import LogOptions, OnFull
from edge.records import Prediction
from edge.settings import EdgeSettings
from edge.spool.directories import default_spool_dir
from servicekit.contract_bounds import MAX_DEVICE_ID_BYTES
from servicekit.errors import SightlineError
from servicekit.mask_formats import MaskFormat
from servicekit.settings import load
from servicekit.standard_streams import open_closed

if TYPE_CHECKING:
    from ultralytics.engine.model import Model
    from ultralytics.engine.results import Results

Milestone = Literal["spooled", "committed"]
_AT_EXIT_SECONDS = 2.0
logger = logging.getLogger(__name__)


class _MaskOptions(TypedDict):
    mask_format: MaskFormat
    polygon_tolerance: float


class PredictionLogger:
    """A logger for the predictions of one device.

    It may be used from any thread, any asyncio loop and forked processes.

    A prediction waits in memory for about 50 ms at most, then in a spool on the disk until the
    ingest service has committed it. A process that is killed loses only what was in memory. A
    process that exits without `close` spools what it can within two seconds.

    A forked process logs into a spool of its own inside `spool_dir`. The process that created the
    logger ships the spools that forked processes leave behind. Every other process needs its own
    `spool_dir`.

    Args:
        target: the ingest service, `host:port` or another gRPC target.
        device_id: name of this device, unique in the fleet, 1 to 256 bytes.
        spool_dir: folder of the spool, created if it is missing. None: `default_spool_dir`.
        credentials: TLS credentials. None: plain text.
        api_key: API key or JWT. Not sent in plain text to other machines. None: none is sent.
        api_key_file: file with the API key or JWT, read for every call. None: use `api_key`.
        on_full: what `log` does when memory is full. `block` waits for the disk. `drop_oldest` and
            `drop_newest` drop a prediction, count it and declare it to the server as a gap.
        options: limits and sizes, and the format of masks.
        model_name: name of the model in logged `Results`, which do not contain it. None:
            `ultralytics`, with a warning at the first one.
        model_version: version of the model in logged `Results`. Empty: not known.

    Raises:
        SightlineError: another process uses `spool_dir` (`SPOOL_LOCKED`), or it belongs to another
            device (`SPOOL_OF_ANOTHER_DEVICE`) or a later version (`SPOOL_TOO_NEW`).
        servicekit.settings.SettingsError: `spool_dir` is None, and this user has no home folder.
        OSError: `spool_dir` can never hold a spool, or this process may not write to it.
        ValueError: an argument is out of its range.

    Example:
        >>> from sightline import Box, Detection, Prediction, PredictionLogger
        >>> scratch = Detection(3, "scratch", 0.87, Box(10, 20, 110, 220))
        >>> with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir="spool") as logger:
        ...     logger.log(Prediction("photo.jpg", "parts", detections=[scratch]))
        ...     logger.flush(timeout=5.0)  # spooled, although no service answers
        True
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
        model_name: str | None = None,
        model_version: str = "",
    ) -> None:
        if not 1 <= len(device_id.encode()) <= MAX_DEVICE_ID_BYTES:
            rule = f"device_id must be 1 to {MAX_DEVICE_ID_BYTES} bytes"
            raise ValueError(f"{rule} (got {device_id!r})")
        if on_full not in get_args(OnFull):
            raise ValueError(f"on_full must be block, drop_oldest or drop_newest (got {on_full!r})")
        open_closed()
        directory = Path(spool_dir) if spool_dir is not None else default_spool_dir(device_id)
        self._config = LoggerConfig(
            Endpoint(target, credentials, api_key, Path(api_key_file) if api_key_file else None),
            device_id,
            directory.absolute(),
            on_full,
            options or LogOptions(),
        )
        Prediction("-", model_name or "-", model_version=model_version)  # validates the arguments
        self._model_name = model_name or None
        self._model_version = model_version
        self.blocks = on_full == "block"
        """True if `log` may wait for the disk."""
        self._begin(self._config.directory)
        self._pipeline.open()
        _loggers.add(self)

    @classmethod
    def from_settings(cls, settings: EdgeSettings | None = None) -> Self:
        """Return a logger configured by settings.

        Args:
            settings: the settings. None: load them from `SIGHTLINE_EDGE_*`, the TOML file and the
                defaults. The name of logged `Results` is `device_model_name`, or else that of the
                file `device_model`.

        Raises:
            servicekit.settings.SettingsError: a setting cannot be used.
        """
        settings = settings or load(EdgeSettings, None, prog="edge")
        endpoint, model = ingest_endpoint(settings), settings.device_model
        return cls(
            endpoint.target,
            device_id=settings.device_id,
            spool_dir=settings.spool_dir,
            credentials=endpoint.credentials,
            api_key=endpoint.api_key,
            api_key_file=endpoint.api_key_file,
            on_full=settings.on_full,
            options=settings.log_options(),
            model_name=settings.device_model_name or (model_name_of(model) if model else None),
            model_version=settings.device_model_version,
        )

    def log(
        self,
        prediction: "Prediction | Results | Sequence[Prediction | Results]",
        *,
        wait: Milestone | None = None,
        timeout: float | None = None,
    ) -> None:
        """Log a prediction; return within microseconds, whatever disk and network do.

        The contents of a prediction raise nothing, because a detector's loop must not end with its
        log: what the server does not accept, it stores as rejected, and what no record can hold is
        counted (`LoggerStats.left_out`). An exception says that the call is wrong or in vain.

        Args:
            prediction: a record, whose detections may be `DetectionArrays`; or ultralytics'
                `Results` of one image, or the list of them that a model returns. They name neither
                the model nor the frame of a video: pass `model_name` to the logger, see `attach`,
                or `sightline.from_ultralytics`. The masks of `Results` take about a millisecond per
                object. Convert supervision's `Detections` with `sightline.from_supervision`.
            wait: return only when the prediction is on the disk (`spooled`) or in the server's
                store (`committed`). None: return at once. In an asyncio loop, use `aflush` instead.
            timeout: seconds to wait at most, both for `wait` and, with policy `block`, for space in
                memory. None: without a limit.

        Raises:
            TimeoutError: the outcome of the prediction was not known in time, although it is
                logged; or, with `block`, memory had no space in time, and it is not logged. The
                message says which.
            SightlineError: with `wait`, the prediction was dropped, or `Results` could not be read
                (`PREDICTION_DROPPED`).
            TypeError: the object is neither a `Prediction` nor `Results` nor a list of them.
            ClosedError: the logger is closed; or, with `wait`, it was closed before the prediction
                was committed, which then stays in the spool.
        """
        if not isinstance(prediction, Prediction):
            self._log_others(prediction, wait, timeout)
            return
        if prediction.left_out is not None:
            self._pipeline.left_out.add(prediction.left_out)
        if wait is None:
            self._put(prediction, timeout)
        else:
            deadline = None if timeout is None else time.monotonic() + timeout
            ordinal = self._pipeline.buffer.add(prediction, timeout)
            remaining = None if deadline is None else deadline - time.monotonic()
            self._wait(ordinal, wait, remaining)

    __call__ = log

    def attach(
        self,
        model: "Model",
        *,
        model_name: str | None = None,
        model_version: str = "",
        **labels: str,
    ) -> Callable[[], None]:
        """Log every `predict` and `track` of the model until the returned function is called.

        No other line of the program needs to change. An image is logged when its result is
        complete, just before the program receives it; this includes streams. Its name is that of
        its file. A frame of a video is `clip.mp4#000013`, counted from 0 in each run. An image of
        a camera, or one passed as an array, has the UTC time in its name. Whatever happens in the
        log, such as a closed logger, the model goes on, and the result is counted
        (`LoggerStats.left_out`).

        Args:
            model: an ultralytics model, such as `YOLO("yolov8n.pt")`.
            model_name: name of the model. None: the name of its file without the suffix.
            model_version: version of the model. Empty: not known.
            labels: labels of each prediction; see `Prediction.labels`.

        Returns:
            A function that detaches the logger. Call it before `close` if the model is used later.

        Raises:
            TypeError: the object is not an ultralytics model.
            ValueError: a label or a name cannot be logged.
        """
        name = adapters.name_of(model) if model_name is None else model_name
        Prediction("-", name, model_version=model_version, labels=labels)  # validates the arguments

        def log_results(results: "Results", image_id: str | None) -> None:
            self.log(
                adapters.from_ultralytics(
                    results,
                    image_id=image_id,
                    model_name=name,
                    model_version=model_version,
                    labels=labels,
                    **self._mask_options(),
                )
            )

        return adapters.attach(model, log_results, self._failed)

    def flush(self, timeout: float | None = None, until: Milestone = "spooled") -> bool:
        """Wait until everything logged before the call is spooled, or committed.

        Args:
            timeout: seconds to wait at most. None: without a limit.
            until: `spooled` or `committed`. The latter includes predictions that earlier processes,
                and forked processes that have ended, have left in their spools.

        Returns:
            True if every prediction was stored. False on a timeout, or if a prediction was dropped
            for any reason (`stats().dropped`). A dropped prediction makes only one flush return
            False, separately for `until="spooled"` and `until="committed"`.
        """
        return self._pipeline.flush(timeout, committed=until == "committed")

    def close(self, timeout: float = 5.0) -> bool:
        """Spool everything logged, ship as long as the server answers, and end the threads.

        Predictions that are not shipped in time stay in the spool for the next process.

        Args:
            timeout: seconds to wait at most. Ending the threads may take some tenths longer.

        Returns:
            True if everything is spooled and nothing was dropped since the last `flush`.
        """
        return self._pipeline.close(timeout)

    def stats(self) -> LoggerStats:
        """Return the current counts."""
        return self._pipeline.stats()

    # The timeout is passed on: `asyncio.timeout` would leave the waiting thread behind.
    async def aflush(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        until: Milestone = "spooled",
    ) -> bool:
        """Call `flush` without blocking the loop."""
        return await asyncio.to_thread(self.flush, timeout, until)

    async def aclose(self, timeout: float = 5.0) -> bool:  # noqa: ASYNC109
        """Call `close` without blocking the loop."""
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

    def _log_others(self, candidate: object, wait: Milestone | None, timeout: float | None) -> None:
        """Log `Results`, or each of a list."""
        if isinstance(candidate, list | tuple):
            for one in candidate:
                self.log(one, wait=wait, timeout=timeout)
            return
        if not adapters.is_ultralytics(candidate):
            raise _not_loggable(candidate)
        if self._model_name is None:
            self._warn_of_unknown_model()
        try:
            prediction = adapters.from_ultralytics(
                candidate,
                model_name=self._model_name or adapters.UNKNOWN_MODEL,
                model_version=self._model_version,
                **self._mask_options(),
            )
        except Exception as error:
            self._failed(error)
            if wait is not None:
                raise _dropped(f"the results cannot be read: {error}", "") from error
        else:
            self.log(prediction, wait=wait, timeout=timeout)

    def _failed(self, error: Exception) -> None:
        self._pipeline.left_out.add({"result": 1}, error)

    def _mask_options(self) -> _MaskOptions:
        options = self._config.options
        return {"mask_format": options.mask_format, "polygon_tolerance": options.polygon_tolerance}

    def _warn_of_unknown_model(self) -> None:
        self._model_name = adapters.UNKNOWN_MODEL
        logger.warning(
            "log: results do not name their model, which is stored as %s: pass model_name to "
            "PredictionLogger, or use its attach",
            self._model_name,
        )

    def _begin(self, directory: Path) -> None:
        self._pipeline = LogPipeline(self._config, directory)
        self._put = self._pipeline.buffer.put
        # Also runs when the process ends. In another process it does nothing.
        weakref.finalize(self, self._pipeline.abandon, _AT_EXIT_SECONDS)

    def _wait(self, ordinal: int, wait: Milestone, timeout: float | None) -> None:
        reason = self._pipeline.wait_for_outcome(ordinal, timeout, committed=wait == "committed")
        if reason is not None:
            raise _dropped(f"the prediction was dropped: {reason.name}", reason.name)

    def _after_fork(self) -> None:
        _inherited.append(self._pipeline)
        self._pipeline.release_in_child()
        self._begin(orphans.new_fork_directory(self._config.directory))


def _not_loggable(candidate: object) -> TypeError:
    if supervision_adapters.is_supervision(candidate):
        name = type(candidate).__name__
        return TypeError(
            f"prediction must name its image, which supervision's {name} do not: convert them "
            "with sightline.from_supervision"
        )
    found = f"got {type(candidate).__name__}"
    if isinstance(candidate, Iterator):  # such as that of `predict(stream=True)`
        found += ": log each of its results in a loop"
    return TypeError(
        "prediction must be a sightline.Prediction, the ultralytics Results of one image or a list "
        f"of them ({found})"
    )


def _dropped(message: str, gap_reason: str) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.DATA_LOSS,
        "PREDICTION_DROPPED",
        message,
        metadata={"gap_reason": gap_reason} if gap_reason else {},
    )


_loggers: "weakref.WeakSet[PredictionLogger]" = weakref.WeakSet()
_inherited: list[LogPipeline] = []  # keeps SQLite from closing the parent's file


# The interpreter calls these around a fork.
def _fork_in_child() -> None:
    for logger in list(_loggers):
        logger._after_fork()  # noqa: SLF001


def _fork_in_parent() -> None:
    for logger in list(_loggers):
        logger._pipeline.ship_orphans()  # noqa: SLF001


os.register_at_fork(after_in_child=_fork_in_child, after_in_parent=_fork_in_parent)
