"""Image files: one, a folder of them, or a pattern."""

import glob
import itertools
from collections.abc import Iterator
from pathlib import Path

from edge.sources.frame import Frame, SourceMonitor
from edge.sources.sampling import Sampler, Sampling
from servicekit.errors import invalid

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class PictureFiles:
    """Image files in the order of their names; read when they are answered, not before.

    A file that turns out not to be an image is a frame like any other, and fails as such.

    Args:
        place: an image, a folder (its images, not those of folders in it), or a pattern such as
            `a/**/*.jpg`.
        sampling: which of them are wanted; images have no times, so only `every` applies.

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
            raise invalid("every_seconds", "must not be given for image files: they have no time")
        self.name = str(place)
        self._paths = _found(place)
        self._root = _root(place)

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield a frame for each file; its id is its path below the folder or the pattern."""
        sampler = Sampler(self._sampling)
        monitor.found()
        for path in self._paths:
            if monitor.wait(0):
                return
            if sampler.takes(0):
                yield Frame(path, path.relative_to(self._root).as_posix())
            else:
                monitor.skipped()


def _found(place: Path | str) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        found = [one for one in path.iterdir() if one.suffix.lower() in SUFFIXES]
    elif path.is_file():
        found = [path]
    else:
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207 - absolute ones, too
        found = [one for one in map(Path, names) if one.is_file()]
    if not found:
        raise invalid("source", f"must name at least one image (got {str(place)!r})")
    return sorted(found)


def _root(place: Path | str) -> Path:
    """The folder that all images of a place are in; of a pattern, up to its first wildcard."""
    path = Path(place)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])
    return Path(*fixed)
