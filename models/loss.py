"""The training loss: the assignment of cells to defects, and the error of their outputs."""

import torch
from torch import Tensor
from torch.nn import functional

from models.network import CELL

# A cell is assigned to a defect whose centre is nearer than this on both axes, in cells.
_REACH = 1.0
_BOX_WEIGHT = 2.0
_FAR = 1e6


def detection_loss(boxes: Tensor, logits: Tensor, centres: Tensor, truth: Tensor) -> Tensor:
    """Return the loss of a batch, a scalar.

    Boxes by generalised IoU (Rezatofighi et al., 2019); classes by quality focal loss (Li et al.,
    "Generalized Focal Loss", 2020), so that a cell's score predicts the IoU of its box and the
    best box survives suppression.

    Args:
        boxes: ``[batch, 4, cells]``, centre x, centre y, width, height in pixels of the input.
        logits: ``[batch, classes, cells]``, scores before the sigmoid.
        centres: ``[2, cells]``, x and y of the cells' centres in cells.
        truth: ``[batch, slots, 5]``, class id, x_min, y_min, x_max, y_max in pixels of the input; a
            slot of class -1 is empty.
    """
    slot, answers = assign(centres, truth)
    image, cell = answers.nonzero(as_tuple=True)
    targets = truth[image, slot[image, cell]]
    overlap, generalised = iou(to_corners(boxes[image, :, cell]), targets[:, 1:])
    quality = torch.zeros_like(logits)
    quality[image, targets[:, 0].long(), cell] = overlap.detach().clamp(0, 1)
    count = max(1, image.numel())
    return (quality_focal(logits, quality) + _BOX_WEIGHT * (1 - generalised).sum()) / count


def assign(centres: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return each cell's nearest defect slot, and True if it is assigned: ``[batch, cells]``."""
    middles = (truth[:, :, 1:3] + truth[:, :, 3:5]) / (2 * CELL)
    distance = (middles[:, :, :, None] - centres).abs().amax(dim=2)
    distance = distance.masked_fill(truth[:, :, :1] < 0, _FAR)
    nearest, slot = distance.min(dim=1)
    return slot, nearest < _REACH


def to_corners(boxes: Tensor) -> Tensor:
    """Convert boxes ``[N, 4]`` from centre and size to x_min, y_min, x_max, y_max."""
    half = boxes[:, 2:] / 2
    return torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), dim=1)


def iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU by row ``[N]``, of boxes ``[N, 4]`` given by their corners."""
    inner = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    outer = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    union = _area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - inner
    overlap = inner / union
    return overlap, overlap - (outer - union) / outer


def quality_focal(logits: Tensor, quality: Tensor) -> Tensor:
    """Return the summed cross-entropy with a soft target, weighted by the score's squared error."""
    error = (quality - logits.sigmoid()).detach().square()
    entropy = functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (error * entropy).sum()


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=1)
