"""What a source of images is: a name, and frames for as long as somebody wants them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edge.detect.base import Image


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of a source.

    Attributes:
        image: the image; pixels are RGB.
        image_id: its name in the log, unique within the source.
        captured_at: when it was taken, in Unix seconds; None: not known.

    Example:
        >>> from sightline import EdgeNode, EdgeSettings
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",  # no service listens there
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     for outcome in node.run("photo.jpg"):
        ...         print(outcome.frame.image_id, outcome.frame.captured_at)
        photo.jpg None
    """

    image: Image
    image_id: str
    captured_at: float | None = None


class SourceMonitor(Protocol):
    """What a source asks of, and tells, whoever reads it. Used from the reader's thread only."""

    def wait(self, seconds: float) -> bool:
        """Waits; returns True as soon as no more frames are wanted. 0 only asks."""

    def skipped(self) -> None:
        """A frame was passed over, because only every n-th, or one every t seconds, is wanted."""

    def lost(self, error: str) -> None:
        """The source is gone for now, and is being looked for."""

    def found(self) -> None:
        """The source gives frames, for the first time or again."""


class FrameSource(Protocol):
    """Where images come from. One reader at a time.

    Example:
        >>> from sightline import EdgeNode, EdgeSettings, Frame
        >>> class Snapshots:
        ...     name, live = "snapshots", False
        ...     def frames(self, monitor):
        ...         monitor.found()
        ...         for number in range(3):
        ...             if monitor.wait(0):
        ...                 return
        ...             yield Frame("photo.jpg", f"snapshot-{number}")
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",  # no service listens there
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     [outcome.frame.image_id for outcome in node.run(Snapshots(), workers=1)]
        ['snapshot-0', 'snapshot-1', 'snapshot-2']
    """

    @property
    def name(self) -> str:
        """What it is called in statistics and labels; not empty, and without credentials."""

    @property
    def live(self) -> bool:
        """Whether frames come at their own pace, so that old ones are dropped when time is short.

        Frames of a source that is not live all wait to be answered.
        """

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield frames until there are no more or `monitor.wait(0)` says so.

        Raises:
            OSError: the source cannot be read (any more).
        """
