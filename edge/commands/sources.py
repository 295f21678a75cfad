"""The sources that a person names for `log`: opened, told apart, and with a device id each."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge.sources.frame import Frame, FrameSource, SourceMonitor
from edge.sources.opening import open_source
from edge.sources.pictures import describe_left_out, images_among, suffixes_left_out
from edge.sources.sampling import Sampling
from edge.sources.suffixes import VIDEO_SUFFIXES
from servicekit.addresses import public_address
from servicekit.distribution import install_hint
from servicekit.names import readable
from servicekit.settings import did_you_mean
from servicekit.terminal import CommandError, UsageError

PLACEHOLDER = "{source}"
"""Part of a device id that stands for the source's name."""


class NamedSource:
    """A source under another name, so that the same source twice is two.

    Args:
        source: gives the frames.
        name: its name in statistics and labels.
    """

    def __init__(self, source: FrameSource, name: str) -> None:
        self._source = source
        self.name = name
        self.live = source.live

    @property
    def length(self) -> int | None:
        """Number of its frames; None: not known."""
        return length_of(self._source)

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield the frames of the source."""
        return self._source.frames(monitor)


def open_sources(
    words: Sequence[str], every: int, every_seconds: float | None
) -> list[FrameSource]:
    """Return the sources that a person named; a name that comes twice gets a number.

    Args:
        words: files, folders, patterns, and numbers or URLs of cameras.
        every: take every n-th frame, >= 1.
        every_seconds: take one frame every so many seconds, > 0; None: `every` holds.

    Raises:
        CommandError: there is no such source, or OpenCV is needed and not installed.
    """
    # OpenCV and FFmpeg read these when they are loaded. They would print each error of a source
    # that this command reports itself.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    sources: list[FrameSource] = []
    taken: set[str] = set()
    try:
        sampling = Sampling(every, every_seconds)
        for word in words:
            _check_exists(word)
            source = open_source(word, sampling)
            name = _unique(source.name, "{} ({})", taken)
            sources.append(source if name == source.name else NamedSource(source, name))
    except ValueError as error:
        raise CommandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CommandError(
            f"videos and cameras need {error.name}: {install_hint('video')}"
        ) from error
    return sources


def skipped_of(words: Sequence[str]) -> list[str]:
    """Return a sentence for each folder that has files or folders which are not read.

    Args:
        words: sources that a person named; those that are no folders are passed over.
    """
    sentences = []
    for word in dict.fromkeys(words):
        if "://" in word or not Path(word).is_dir():
            continue
        entries = list(Path(word).iterdir())
        folders = sum(entry.is_dir() for entry in entries)
        others = describe_left_out(suffixes_left_out(entries))
        parts = [f"{others}{_naming_videos(word, entries)}"] if others else []
        if folders:
            parts.append(f"{_count(folders, 'folder')} ('{Path(word)}/**/*.jpg' reads them too)")
        if parts:
            sentences.append(f"{readable(word)}: skipped {' and '.join(parts)}")
    return sentences


def _naming_videos(folder: str, entries: Sequence[Path]) -> str:
    """Return how to name the videos of a folder as sources; empty: it has none."""
    suffixes = [entry.suffix for entry in entries if entry.suffix.lower() in VIDEO_SUFFIXES]
    if not suffixes:
        return ""
    return f" (name videos themselves: {readable(folder).rstrip('/')}/*{min(suffixes)})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def length_of(source: FrameSource) -> int | None:
    """Return how many frames a source has; None: not known, as of a camera."""
    length = getattr(source, "length", None)
    return length if isinstance(length, int) else None


def check_placeholders(device_id: str) -> None:
    """Raise UsageError if a device id has braces that are not those of `{source}`."""
    rest = device_id.replace(PLACEHOLDER, "")
    if "{" in rest or "}" in rest:
        found = re.search(r"\{[^{}]*\}?|[^{}]*\}", rest)
        wrong = found[0] if found else rest
        hint = did_you_mean(wrong, [PLACEHOLDER]) or f": {PLACEHOLDER} is the only one"
        raise UsageError(f"device_id: {wrong} is no placeholder{hint} (got {device_id!r})")


def device_ids(template: str, sources: Sequence[FrameSource]) -> list[str]:
    """Return a device id for each source, each different.

    Args:
        template: a device id with `{source}` in it.
        sources: each one's name, without folders, suffix and scheme, takes the placeholder's place.
    """
    taken: set[str] = set()
    names = [_unique(short_name(source.name), "{}-{}", taken) for source in sources]
    return [template.replace(PLACEHOLDER, name) for name in names]


def short_name(name: str) -> str:
    """Return a source's name as a part of a device id: letters, digits, `_`, `.` and `-`."""
    name = re.sub(r" \(\d+\)$", "", name)
    if "://" not in name:
        path = Path(name).resolve()
        while glob.has_magic(path.name):
            path = path.parent
        name = path.stem if path.is_file() else path.name
    return re.sub(r"[^\w.]+", "-", name.partition("://")[2] or name).strip("-.") or "source"


def _unique(name: str, numbered: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken, and add the result to the taken names."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = numbered.format(name, number)
    taken.add(unique)
    return unique


def _check_exists(word: str) -> None:
    """Raise CommandError with what is missing, where a word can only mean files."""
    path, shown = Path(word), public_address(word)
    if "://" in word or word.startswith("/dev/video") or (word.isdigit() and not path.exists()):
        return
    if path.is_dir():
        entries = list(path.iterdir())
        if not images_among(entries):
            found = describe_left_out(suffixes_left_out(entries))
            but = f", but {found}{_naming_videos(word, entries)}" if found else ""
            raise CommandError(
                f"The folder {word} has no image in it{but}. Folders in it are not read:"
                f" '{path}/**/*.jpg' is a pattern that does"
            )
    elif path.exists():
        return
    elif glob.has_magic(word):
        if not any(Path(name).is_file() for name in glob.iglob(word, recursive=True)):  # noqa: PTH207
            raise CommandError(f"No file matches {shown}")
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise CommandError(
                f"A pattern stands for images, not for videos (got {shown}). Leave out its quotes,"
                " so that the shell names each video"
            )
    else:
        kind = "file" if path.suffix and not word.endswith("/") else "folder"
        raise CommandError(f"There is no {kind} {shown}")
