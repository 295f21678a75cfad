"""Image files as a source: one file, a folder or a pattern."""

import glob
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from edge.names import source_name_of
from edge.sources.frame import Frame, SourceMonitor
from edge.sources.sampling import Sampler, Sampling
from edge.sources.suffixes import IMAGE_SUFFIXES
from servicekit.addresses import public_address
from servicekit.errors import invalid
from servicekit.names import readable

_SHOWN_SUFFIXES = 5


class PictureFiles:
    """Image files in the order of their names. A file is read when it is processed.

    The frame of a file that is not a valid image fails; the others are still processed. The type of
    an image comes from its content: JPEG (also MPO: its first image), PNG, WebP, BMP, TIFF (its
    first page), GIF (its first frame), JPEG 2000, AVIF or Netpbm.

    Args:
        place: an image, a folder (without its subfolders), or a pattern such as `a/**/*.jpg`. Of a
            folder only files with the suffix of an image are read.
        sampling: selection of the files; only `every` applies, because files have no capture time.

    Attributes:
        left_out: number of the folder's files that are not read, by suffix in lower case; files
            whose names begin with a dot are not counted.

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
        self.name = source_name_of(str(place))
        self._paths, self.left_out = _paths(place)
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


def images_among(entries: Iterable[Path]) -> list[Path]:
    """Return a folder's files with the suffix of an image.

    Folders, pipes and devices are none: to open a pipe waits for its writer. A broken link is one,
    whose frame fails.

    Args:
        entries: of the folder.
    """
    return [
        entry
        for entry in entries
        if entry.suffix.lower() in IMAGE_SUFFIXES and (entry.is_file() or not entry.exists())
    ]


def suffixes_left_out(entries: Iterable[Path]) -> Mapping[str, int]:
    """Return the number of a folder's files that are not read, by suffix in lower case.

    Args:
        entries: of the folder. Folders, and files whose names begin with a dot, are not counted.
    """
    return Counter(
        entry.suffix.lower()
        for entry in entries
        if entry.suffix.lower() not in IMAGE_SUFFIXES
        and not entry.name.startswith(".")
        and not entry.is_dir()
    )


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Return the number and the suffixes of files that are not read; empty: there are none.

    Example:
        >>> describe_left_out({".heic": 2, "": 1})
        '3 files without the suffix of an image (.heic, no suffix)'
    """
    if not left_out:
        return ""
    suffixes = sorted(readable(suffix) or "no suffix" for suffix in left_out)
    shown = ", ".join(suffixes[:_SHOWN_SUFFIXES])
    more = ", ..." if len(suffixes) > _SHOWN_SUFFIXES else ""
    count = sum(left_out.values())
    files = "1 file" if count == 1 else f"{count:,} files"
    return f"{files} without the suffix of an image ({shown}{more})"


def _paths(place: Path | str) -> tuple[list[Path], Mapping[str, int]]:
    """Return the files of a place in their order, and the numbers of those left out by suffix."""
    left_out: Mapping[str, int] = {}
    path = Path(place)
    if path.is_dir():
        entries = list(path.iterdir())
        paths = images_among(entries)
        left_out = suffixes_left_out(entries)
    elif path.is_file():
        paths = [path]
    else:
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207 - Path.glob is relative only
        paths = [file for file in map(Path, names) if file.is_file()]
    if not paths:
        found = describe_left_out(left_out)
        raise invalid(
            "source",
            f"must name at least one image (got {readable(public_address(str(place)))!r}"
            + (f", which has {found})" if found else ")"),
        )
    return sorted(paths), left_out


def _root(place: Path | str) -> Path:
    """Return the folder of a place's images; that of a pattern ends before its first wildcard."""
    path = Path(place)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])
    return Path(*fixed)
