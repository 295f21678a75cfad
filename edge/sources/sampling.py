"""Sampling of a source's frames: every n-th, or one per time interval."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """A selection of the frames to process. The default selects all frames.

    Attributes:
        every: select every n-th frame, beginning with the first, >= 1.
        every_seconds: interval in seconds between selected frames, > 0; None: `every` applies.

    Raises:
        ValueError: an attribute is out of range, or both are given; the message names it.

    Example:
        >>> from sightline import PictureFiles, Sampling
        >>> files = PictureFiles(".", Sampling(every=10))
        >>> Sampling(every=0)
        Traceback (most recent call last):
        ValueError: every must be >= 1, got 0
    """

    every: int = 1
    every_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1, got {self.every}")
        if self.every_seconds is None:
            return
        if not 0 < self.every_seconds < float("inf"):
            seconds = f"{self.every_seconds:g}"
            raise ValueError(f"every_seconds must be above 0 and finite, got {seconds}")
        if self.every > 1:
            raise ValueError("every_seconds must not be given together with every")


class Sampler:
    """A sampler of one source's frames. It has no clock: the caller passes the time.

    Args:
        sampling: the selection.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._seen = 0
        self._due: float | None = None

    def takes(self, seconds: float) -> bool:
        """Return True if the next frame is selected.

        Args:
            seconds: capture time of the frame, on any monotonic clock.
        """
        step = self._sampling.every_seconds
        if step is None:
            self._seen += 1
            return (self._seen - 1) % self._sampling.every == 0
        if self._due is not None and seconds < self._due:
            return False
        # Due times are on a grid, so that late frames do not lower the rate. After a gap of more
        # than one interval a new grid begins.
        due = seconds if self._due is None else self._due
        self._due = due + step if seconds < due + step else seconds + step
        return True
