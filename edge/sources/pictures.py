"""Image files as a source: one file, a folder or a pattern."""

import glob
import itertools
from collections.abc import Iterator
from pathlib import Path

from edge.sources.frame import Frame, SourceMonitor
from edge.sources.sampling import Sampler, Sampling
from servicekit.addresses import public_address
from servicekit.errors import invalid

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class PictureFiles:
    """Image files in the order of their names. A file is read when it is processed.

    The frame of a file that is not a valid image fails; the others are still processed.

    Args:
        place: an image, a folder (without its subfolders), or a pattern such as `a/**/*.jpg`.
        sampling: selection of the files; only `every` applies, because files have no capture time.

    Raises:
        SightlineError: INVALID_ARGUMENT: there is no image, or `every_seconds` is given.

    Example:
        >>> from sightline import EdgeNode, EdgeSettings, PictureFiles
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",  # no service listens there
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     [outcome.frame.image_id for outcome in node.run(PictureFiles("*.jpg"))]
        ['photo.jpg']
    """

    live = False

    def __init__(self, place: Path | str, sampling: Sampling | None = None) -> None:
        self._sampling = sampling or Sampling()
        if self._sampling.every_seconds is not None:
            raise invalid(
                "every_seconds", "must not be given for image files: they have no capture time"
            )
        self.name = str(place)
        self._paths = _paths(place)
        self._root = _root(place)
        self.length: int | None = len(self._paths)

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield a frame for each file; its id is its path relative to the folder or pattern."""
        sampler = Sampler(self._sampling)
        monitor.found()
        for path in self._paths:
            if monitor.wait(0):
                return
            if sampler.takes(0):
                yield Frame(path, path.relative_to(self._root).as_posix())
            else:
                monitor.skipped()


def _paths(place: Path | str) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        paths = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
    elif path.is_file():
        paths = [path]
    else:
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207 - Path.glob is relative only
        paths = [file for file in map(Path, names) if file.is_file()]
    if not paths:
        raise invalid(
            "source", f"must name at least one image (got {public_address(str(place))!r})"
        )
    return sorted(paths)


def _root(place: Path | str) -> Path:
    """Return the folder of a place's images; that of a pattern ends before its first wildcard."""
    path = Path(place)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])
    return Path(*fixed)
