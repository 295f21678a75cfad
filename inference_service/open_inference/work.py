"""The members of a `ModelInfer` request; see `serving.work.MemberWork`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from inference_service.models.engine import Model, prepare_image
from inference_service.open_inference.request import CheckedInfer, EncodedImage, bad_image
from inference_service.open_inference.tensors import Tensor, to_tensor
from inference_service.serving.pixel_budget import Reserve, reserve_none
from inference_service.serving.work import MemberWork, Outputs
from vision import ImageError


@dataclass(slots=True)
class TensorWork:
    """A member with rows that the caller has preprocessed."""

    array: NDArray[Any]
    """Input `[rows, 3, height, width]`."""
    outputs: Sequence[int]
    """Indices of the requested outputs."""

    @property
    def rows(self) -> int:
        """Number of rows of the input, >= 1."""
        return len(self.array)

    @property
    def effort(self) -> int:
        """Number of pixels to decode: none."""
        return 0

    def prepare(self) -> NDArray[Any]:
        """Return the caller's rows."""
        return self.array

    def finish(self, outputs: Outputs) -> list[Tensor]:
        """Return the requested outputs in the wire format."""
        return _select(outputs, self.outputs)


@dataclass(slots=True)
class EncodedWork:
    """A member with one encoded image."""

    image: EncodedImage
    outputs: Sequence[int]
    """Indices of the requested outputs."""
    model: Model
    """Model that determines the preprocessing."""
    reserve: Reserve = reserve_none
    rows: int = 1

    @property
    def effort(self) -> int:
        """Number of pixels to decode."""
        return self.image.opened.effort

    def prepare(self) -> NDArray[Any]:
        """Decode the image and return the network's input `[1, 3, height, width]`.

        Raises:
            SightlineError: INVALID_ARGUMENT: it cannot be decoded; RESOURCE_EXHAUSTED,
                `TOO_MUCH_IN_FLIGHT`: no memory for its pixels.
        """
        try:
            return prepare_image(self.model, self.image.opened, self.reserve)[0]
        except ImageError as error:
            raise bad_image(self.image.field, error) from error

    def finish(self, outputs: Outputs) -> list[Tensor]:
        """Return the requested outputs in the wire format."""
        return _select(outputs, self.outputs)


def members(
    checked: CheckedInfer, model: Model, reserve: Reserve = reserve_none
) -> list[MemberWork[list[Tensor]]]:
    """Return the members of a request, in the order of its rows.

    Rows that fit into one run are one member: the response is then the model's output for exactly
    that input. Otherwise each row is a member, like an image.
    """
    inputs, outputs = checked.inputs, checked.outputs
    if isinstance(inputs, tuple):
        return [EncodedWork(image, outputs, model, reserve) for image in inputs]
    if len(inputs) <= model.lane.max_rows:
        return [TensorWork(inputs, outputs)]
    return [TensorWork(inputs[at : at + 1], outputs) for at in range(len(inputs))]


def _select(outputs: Outputs, positions: Sequence[int]) -> list[Tensor]:
    return [to_tensor(outputs[position]) for position in positions]
