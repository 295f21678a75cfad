"""The protocol of an image source, its frames and its monitor."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edge.detect.base import Image
from edge.names import image_id_of
from servicekit.addresses import public_address, url_scheme


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of a source.

    Attributes:
        image: the image; arrays are RGB.
        image_id: the image's name in the log, unique within the source. A name that is no valid
            text, or is longer than 512 bytes, is replaced by one that is; see
            `servicekit.names.readable`.
        captured_at: capture time in Unix seconds; None: not known.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_id", image_id_of(self.image_id))


class SourceMonitor(Protocol):
    """The stop signal of a source, and the receiver of its state. For the reader's thread only."""

    def wait(self, seconds: float) -> bool:
        """Wait for the stop signal for `seconds`; return True once the reading must stop."""

    def skipped(self) -> None:
        """Count a frame that the sampling did not select."""

    def damaged(self, count: int) -> None:
        """Count frames that cannot be decoded, and after which the reading goes on."""

    def missing(self, count: int) -> None:
        """Report at the end how many frames a file lists and does not have, damaged ones aside."""

    def lost(self, error: str) -> None:
        """Report that the connection is lost and that the source reconnects."""

    def found(self) -> None:
        """Report that the source delivers frames, for the first time or again."""


def public_name(source: "FrameSource") -> str:
    """Return a source's name; of a URL without user, password and token, should it have them."""
    return public_address(source.name) if url_scheme(source.name) else source.name


class FrameSource(Protocol):
    """A source of images. One reader at a time iterates over its frames.

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
        """The source's name in statistics and labels, not empty and without credentials."""

    @property
    def live(self) -> bool:
        """True if frames arrive in real time, so that old ones are dropped under load.

        All frames of a source that is not live are processed.
        """

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield frames until there are no more or `monitor.wait(0)` returns True.

        Raises:
            OSError: the source cannot be read.
        """
