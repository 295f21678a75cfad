"""The members of a run that a checked request makes; see `serving.work.Work`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from inference_service.models.engine import Model, prepare_image
from inference_service.open_inference.request import CheckedInfer, EncodedImage, bad_image
from inference_service.open_inference.tensors import Tensor, to_tensor
from inference_service.serving.pixel_room import Hold, hold_none
from inference_service.serving.work import Outputs, Work
from vision import ImageError


@dataclass(slots=True)
class TensorWork:
    """Rows that the caller has prepared."""

    array: NDArray[Any]
    """`[rows, 3, height, width]`."""
    outputs: Sequence[int]
    """Positions of the outputs that are wanted."""

    @property
    def rows(self) -> int:
        """Rows of input that it makes, >= 1."""
        return len(self.array)

    @property
    def effort(self) -> int:
        """Pixels that are decoded: none."""
        return 0

    def prepare(self) -> NDArray[Any]:
        """Return the rows as they came."""
        return self.array

    def finish(self, outputs: Outputs) -> list[Tensor]:
        """Return the outputs that are wanted, as they go over the wire."""
        return _wanted(outputs, self.outputs)


@dataclass(slots=True)
class EncodedWork:
    """One encoded image."""

    image: EncodedImage
    outputs: Sequence[int]
    """Positions of the outputs that are wanted."""
    model: Model
    """By whose rules it is prepared."""
    hold: Hold = hold_none
    rows: int = 1

    @property
    def effort(self) -> int:
        """Pixels that are decoded."""
        return self.image.opened.effort

    def prepare(self) -> NDArray[Any]:
        """Decode the image and make the network's input `[1, 3, height, width]` of it.

        Raises:
            SightlineError: INVALID_ARGUMENT: it cannot be decoded; RESOURCE_EXHAUSTED,
                `TOO_MUCH_IN_FLIGHT`: there is no room for its pixels.
        """
        try:
            return prepare_image(self.model, self.image.opened, self.hold)[0]
        except ImageError as error:
            raise bad_image(self.image.field, error) from error

    def finish(self, outputs: Outputs) -> list[Tensor]:
        """Return the outputs that are wanted, as they go over the wire."""
        return _wanted(outputs, self.outputs)


def members(
    checked: CheckedInfer, model: Model, hold: Hold = hold_none
) -> list[Work[list[Tensor]]]:
    """Return the members that answer a request, in the order of its rows.

    Rows that fit into one run stay together: the answer is then what the model makes of just such
    an input. More of them are run as single images are.
    """
    inputs, outputs = checked.inputs, checked.outputs
    if isinstance(inputs, tuple):
        return [EncodedWork(image, outputs, model, hold) for image in inputs]
    if len(inputs) <= model.lane.max_rows:
        return [TensorWork(inputs, outputs)]
    return [TensorWork(inputs[at : at + 1], outputs) for at in range(len(inputs))]


def _wanted(outputs: Outputs, positions: Sequence[int]) -> list[Tensor]:
    return [to_tensor(outputs[position]) for position in positions]
