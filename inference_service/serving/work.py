"""What the workers are given to do, what they say of it, and who is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from inference_service.serving.admission import Lane
from servicekit.errors import SightlineError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Outputs = Sequence[NDArray[Any]]
"""One array per output of a model, each `[rows, ...]`."""


class MemberWork(Protocol[T_co]):
    """One member of a run. Its methods block and are called in worker threads."""

    @property
    def rows(self) -> int:
        """Rows of input that it makes, >= 1."""

    @property
    def effort(self) -> int:
        """Pixels that `prepare` decodes, as `OpenedImage.effort`; 0: it decodes nothing."""

    def prepare(self) -> NDArray[Any]:
        """Return the input `[rows, ...]`.

        Raises:
            SightlineError: of category VALIDATION: the member's own input is bad; it fails alone.
        """

    def finish(self, outputs: Outputs) -> T_co:
        """Return what the member's own rows of every output mean."""


class Runner(Protocol):
    """A loaded model, as the workers see it."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def lane(self) -> Lane:
        """How it is run."""

    def run(self, batch: NDArray[Any]) -> Outputs:
        """Run an input `[rows, ...]`; blocks; safe in several threads at once.

        Raises:
            SightlineError: INTERNAL: the model or its device failed.
        """


class Listener(Protocol):
    """Is told what happens, on the event loop's thread."""

    def batch(self, model: str, rows: int) -> None:
        """A run of so many rows has ended well."""

    def expired(self, where: str) -> None:
        """A member got no answer in time: in the `queue`, in its `run`, or was `cancelled`."""


@dataclass(frozen=True, slots=True)
class MemberResult(Generic[T]):
    """What came of one member, and the seconds that its stages took."""

    result: T | SightlineError
    """What it found, or what was wrong with its own input."""
    waited: float
    """In the queue."""
    decode: float = 0.0
    infer: float = 0.0
    """The whole run of its batch."""
    post: float = 0.0
    batch: int = 1
    """Members of the run."""
    ended: float = field(default=0.0, compare=False)
    """When all of it was done, on the workers' clock; 0: its input was bad."""
