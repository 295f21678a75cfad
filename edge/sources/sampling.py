"""Which frames of a source are wanted: every n-th, or one every so many seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames are wanted; all of them unless told otherwise.

    Attributes:
        every: take every n-th frame, beginning with the first, >= 1.
        every_seconds: take a frame every so many seconds, > 0; None: whatever `every` says.

    Raises:
        ValueError: a bound is broken, or both are given; names the attribute.

    Example:
        >>> from sightline import PictureFiles, Sampling
        >>> files = PictureFiles(".", Sampling(every=10))
        >>> Sampling(every=0)
        Traceback (most recent call last):
        ValueError: every must be >= 1, is 0
    """

    every: int = 1
    every_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1, is {self.every}")
        if self.every_seconds is None:
            return
        if not 0 < self.every_seconds < float("inf"):
            raise ValueError(f"every_seconds must be above 0 and finite, is {self.every_seconds:g}")
        if self.every > 1:
            raise ValueError("every_seconds must not be given together with every")


class Sampler:
    """Decides frame by frame. Pure: the time comes in.

    Args:
        sampling: which frames are wanted.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._seen = 0
        self._due: float | None = None

    def takes(self, seconds: float) -> bool:
        """Return whether the next frame is wanted.

        Args:
            seconds: when it was taken, on any clock that does not go back.
        """
        step = self._sampling.every_seconds
        if step is None:
            self._seen += 1
            return (self._seen - 1) % self._sampling.every == 0
        if self._due is not None and seconds < self._due:
            return False
        # On a grid, so that frames which come a little late do not lower the rate; after a pause
        # a new one begins.
        due = seconds if self._due is None else self._due
        self._due = due + step if seconds < due + step else seconds + step
        return True
