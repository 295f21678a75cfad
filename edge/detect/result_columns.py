"""Results of one image of another library as columns, and the records that hold them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edge.columns import Array
from edge.geometry import Keypoint, Mask, RotatedBox
from edge.records import Box, Detection, DetectionArrays
from servicekit.contract_bounds import MAX_CLASS_NAME_BYTES
from servicekit.names import readable


def _text(name: object) -> str:
    """Return a name as text that can be encoded, in the size that the server takes.

    The labels of an open vocabulary are sentences. The server would reject the whole prediction
    for one that is too long.
    """
    if isinstance(name, str) and name.isascii() and len(name) <= MAX_CLASS_NAME_BYTES:
        return name
    return readable(str(name), MAX_CLASS_NAME_BYTES)


class ModelNames(Mapping[int, str]):
    """A model's labels; empty for a class without one, because a class says more than nothing.

    Args:
        names: labels by number. Labels from a JSON file have texts as keys: `{"0": "part"}`. None:
            the model has none.
    """

    def __init__(self, names: "Mapping[Any, object] | Sequence[object] | None") -> None:
        self._names = () if names is None else names

    def __getitem__(self, class_id: int) -> str:
        if class_id < 0:
            return ""
        names = self._names
        try:
            return _text(names[class_id])
        except LookupError:
            return _text(names.get(str(class_id), "")) if isinstance(names, Mapping) else ""

    def __iter__(self) -> Iterator[int]:
        return iter(self._names if isinstance(self._names, Mapping) else range(len(self._names)))

    def __len__(self) -> int:
        return len(self._names)


@dataclass(slots=True, kw_only=True)  # not frozen, which would double the cost of making one
class ResultColumns:
    """The objects in one image, as arrays of numpy in host memory, most confident first."""

    boxes: Array
    """`[n, 4]`: left, top, right, bottom in pixels of the upright image."""
    confidence: Array
    """`[n]`."""
    class_id: Array
    """`[n]`."""
    names: ModelNames | None = None
    """The model's labels. None: there are none."""
    class_name: Sequence[object] | None = None
    """`[n]` labels, in place of `names`."""
    track_id: Sequence[Any] | None = None
    """`[n]`. None: not tracked."""
    rotated: Array = None
    """`[n, 5]`: center x and y, width, height, angle. None: no orientation."""
    keypoints: Array = None
    """`[n, k, 2 or 3]`. None: no keypoints."""
    masks: Callable[[Counter[str]], Sequence[Mask | None]] | None = None
    """Makes a mask for each object, and counts what does not fit into a record. None: no masks."""

    def arrays(self, left_out: Counter[str]) -> DetectionArrays:
        """Return the detections as arrays, and count what of their masks does not fit by kind.

        Raises:
            ValueError: a number is NaN, a class or a track is not a whole number of its size, or
                there are not as many keypoints or masks as boxes; see `rows`.
        """
        names = self.class_name
        return DetectionArrays(
            self.boxes,
            self.confidence,
            self.class_id,
            track_id=self.track_id,
            names=self.names,
            class_name=None if names is None else [_text(name) for name in names],
            rotated_boxes=self.rotated,
            keypoints=self.keypoints,
            masks=None if self.masks is None else self.masks(left_out),
        )

    def rows(self, left_out: Counter[str]) -> tuple[Detection, ...]:
        """Return those detections that a record can hold, and count the other parts by kind.

        This is slower than `arrays`, and for results that those cannot hold. A record can hold NaN,
        which the server stores as rejected, but no class that is not a 32-bit integer.
        """
        count = len(self.boxes)
        keypoints = self.keypoints
        if keypoints is not None and len(keypoints) != count:
            left_out["keypoints"] += 1
            keypoints = None
        masks = self._masks(left_out)
        found = []
        for row in range(count):
            try:
                class_id = int(self.class_id[row])
                one = Detection(
                    class_id,
                    self._name(row, class_id),
                    float(self.confidence[row]),
                    Box(*self.boxes[row].tolist()),
                    self._track(row, left_out),
                    rotated_box=None if self.rotated is None else RotatedBox(*self.rotated[row]),
                    keypoints=()
                    if keypoints is None
                    else [Keypoint(*point) for point in keypoints[row].tolist()],
                    mask=None if masks is None else masks[row],
                )
            except (ValueError, OverflowError):  # a class that is NaN, infinite or beyond 32 bits
                left_out["detection"] += 1
            else:
                found.append(one)
        return tuple(found)

    def _name(self, row: int, class_id: int) -> str:
        if self.class_name is not None:
            return _text(self.class_name[row])
        return "" if self.names is None else self.names[class_id]

    def _track(self, row: int, left_out: Counter[str]) -> int | None:
        track = None if self.track_id is None else self.track_id[row]
        if track is None:
            return None
        try:
            number = int(track)
        except (ValueError, OverflowError):  # NaN or infinite
            number = 1 << 63
        if not -(1 << 63) <= number < 1 << 63:
            left_out["track_id"] += 1
            return None
        return number

    def _masks(self, left_out: Counter[str]) -> Sequence[Mask | None] | None:
        if self.masks is None:
            return None
        count = len(self.boxes)
        masks: Sequence[Mask | None] = ()
        with suppress(Exception):  # boxes without masks say more than nothing
            masks = self.masks(left_out)
        if len(masks) != count:
            left_out["mask"] += max(count, 1)
            return None
        return masks
