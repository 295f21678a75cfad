"""Interfaces of the workers: work, models, listeners and results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from inference_service.serving.admission import Lane
from servicekit.errors import SightlineError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Outputs = Sequence[NDArray[Any]]
"""Arrays of all outputs of a model, each `[rows, ...]`."""


class MemberWork(Protocol[T_co]):
    """One member of a run. Its methods block and are called in worker threads."""

    @property
    def rows(self) -> int:
        """Number of rows of its input, >= 1."""

    @property
    def effort(self) -> int:
        """Number of pixels that `prepare` decodes, from `OpenedImage.effort`; 0 if none."""

    def prepare(self) -> NDArray[Any]:
        """Return the input `[rows, ...]`.

        Raises:
            SightlineError: with category VALIDATION if the member's input is bad; only it fails.
        """

    def finish(self, outputs: Outputs) -> T_co:
        """Return the result from the member's rows of every output."""


class Runner(Protocol):
    """The interface of a loaded model for the workers."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def lane(self) -> Lane:
        """Lane of the model."""

    def run(self, batch: NDArray[Any]) -> Outputs:
        """Run an input `[rows, ...]`; blocks; thread-safe.

        Raises:
            SightlineError: INTERNAL: the model or its device failed.
        """


class Listener(Protocol):
    """Callbacks for events, called on the event loop's thread."""

    def batch(self, model: str, rows: int) -> None:
        """Handle a successful run of `rows` rows."""

    def expired(self, where: str) -> None:
        """Handle a member without a response in time: in the `queue`, the `run`, or `cancelled`."""


@dataclass(frozen=True, slots=True)
class MemberResult(Generic[T]):
    """The result of one member, and the durations of its stages in seconds."""

    result: T | SightlineError
    """Result, or the error of its own input."""
    waited: float
    """Time in the queue."""
    decode: float = 0.0
    infer: float = 0.0
    """Duration of the run of its batch."""
    post: float = 0.0
    batch: int = 1
    """Number of members of the run."""
    ended: float = field(default=0.0, compare=False)
    """Time of completion on the workers' clock; 0 if its input was bad."""
