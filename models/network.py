"""A tiny anchor-free detector: a convolutional pyramid, read out on one grid of 8 x 8 pixel cells.

Each cell outputs the probability that a defect of each class has its centre there, and its box:
centre offset and size, as in CenterNet (Zhou, Wang and Krähenbühl, "Objects as Points", 2019).
Coarser levels cover the whole of a long scratch and pass that down (Lin et al., "Feature Pyramid
Networks for Object Detection", 2017).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Of the demo model's input, in pixels; a plate of 320 x 240 fits without scaling.
INPUT_HEIGHT = 320
INPUT_WIDTH = 320
# Pixels per cell of the output grid, and of the coarsest level inside.
CELL = 8
STRIDE = 32
BOX_CHANNELS = 4

_WIDTHS = (24, 40, 56, 80)
_NECK = 48
# At first one cell in a hundred predicts a defect, which keeps the first steps stable (Lin et al.,
# "Focal Loss for Dense Object Detection", 2017).
_PRIOR = 0.01
# A size of exp(1.5) cells, 36 pixels, is where regression starts.
_LOG_SIZE = 1.5


def _conv(inputs: int, outputs: int, *, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Block(nn.Module):
    """A residual block: depthwise 5 x 5, a wide view at little cost, then pointwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.pointwise = _conv(channels, channels, size=1)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.pointwise(self.depthwise(x))
        return x + features


class PlateDetector(nn.Module):
    """A detector of defects on plates.

    Input: float32 [batch, 3, height, width], RGB in 0 to 1.
    Output: float32 [batch, 4 + classes, cells], the layout of YOLOv8 detectors: centre x, centre y,
    width and height in pixels of the input, then one score in 0 to 1 per class.

    Args:
        classes: number of classes, at least 1.
        height: height of the input in pixels, a multiple of STRIDE.
        width: width of the input in pixels, a multiple of STRIDE.
    """

    centres: Tensor

    def __init__(self, classes: int, height: int, width: int) -> None:
        super().__init__()
        self.outputs = BOX_CHANNELS + classes
        self.register_buffer("centres", cell_centres(height // CELL, width // CELL))
        stem, fine, middle, coarse = _WIDTHS
        # One wide step down to a quarter: full resolution would take most of the time.
        self.stem = _conv(3, stem, stride=4, size=7)
        self.fine = nn.Sequential(_conv(stem, fine, stride=2), _Block(fine))
        self.middle = nn.Sequential(_conv(fine, middle, stride=2), _Block(middle))
        self.coarse = nn.Sequential(_conv(middle, coarse, stride=2), _Block(coarse), _Block(coarse))
        self.sides = nn.ModuleList(_conv(width, _NECK, size=1) for width in _WIDTHS[1:])
        self.merges = nn.ModuleList(_Block(_NECK) for _ in range(2))
        self.tower = _conv(_NECK, _NECK)
        self.readout = nn.Conv2d(_NECK, BOX_CHANNELS + classes, 1)
        self._start_calm()

    def _start_calm(self) -> None:
        bias = self.readout.bias
        assert bias is not None
        with torch.no_grad():
            self.readout.weight.mul_(0.1)
            bias[:2] = 0.0
            bias[2:BOX_CHANNELS] = _LOG_SIZE
            bias[BOX_CHANNELS:] = -math.log((1 - _PRIOR) / _PRIOR)

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and logits, the scores before the sigmoid.

        Boxes are [batch, 4, cells]: centre x, centre y, width and height in pixels of the input.
        Logits are [batch, classes, cells].
        """
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        features = self.sides[2](self.coarse(middle))
        features = self.merges[0](self.sides[1](middle) + _twice(features))
        features = self.merges[1](self.sides[0](fine) + _twice(features))
        cells = self.readout(self.tower(features)).reshape(-1, self.outputs, self.centres.shape[1])
        middles = self.centres + cells[:, :2]
        # The clamp keeps exp finite; exp(4.5) cells are 720 pixels.
        sizes = cells[:, 2:BOX_CHANNELS].clamp(-4.0, 4.5).exp()
        return torch.cat((middles, sizes), dim=1) * CELL, cells[:, BOX_CHANNELS:]

    def forward(self, images: Tensor) -> Tensor:
        """Run the detector; see the class for the shapes."""
        boxes, logits = self.raw(images)
        return torch.cat((boxes, logits.sigmoid()), dim=1)


def cell_centres(rows: int, columns: int) -> Tensor:
    """Return the x, y centres of a grid in cells, row by row: float32 ``[2, rows * columns]``."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()))


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
