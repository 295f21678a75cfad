"""Limits on the images that a device reads. They need neither numpy nor Pillow."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceImageLimits:
    """Limits on an encoded image that a device reads: a file of its own, or bytes.

    They bound the memory of the device. The limits of the inference service are its own, and are
    smaller by default. Width and height are at most 65 535 pixels each, as in the log.

    Attributes:
        max_bytes: size of the encoded image, >= 1.
        max_pixels: width times height, >= 1. Decoding takes at least 7 bytes per pixel.

    Raises:
        ValueError: a limit is below 1.

    Example:
        >>> from sightline import DeviceImageLimits, OnnxDetector
        >>> limits = DeviceImageLimits(max_pixels=50_000_000)
        >>> len(OnnxDetector("model.onnx", limits=limits).detect("photo.jpg").detections)
        3
    """

    max_bytes: int = 512 << 20
    max_pixels: int = 400_000_000

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


DEVICE_LIMITS = DeviceImageLimits()
"""The default limits."""
