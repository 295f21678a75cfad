"""Checks of the device's model: that it loads and runs, on which provider and how fast."""

import statistics
import time
from collections.abc import Callable, Iterator

from edge import assemble
from edge.decide.class_names import TAKE_OTHERS, unknown_classes
from edge.decide.labels import labels_of
from edge.detect.base import Detector, close_detector
from edge.device_model import load_detector
from edge.doctor.finding import Finding, failed, ok, warning
from edge.settings import EdgeSettings
from servicekit.distribution import install_hint

_SIDE = 640  # of the test images, pixels


def model(
    settings: EdgeSettings, note: Callable[[Detector], object] = lambda _detector: None
) -> Iterator[Finding]:
    """Check the device's model, if the settings name one.

    Args:
        settings: of the node.
        note: called with the detector once it is loaded.
    """
    if settings.device_model is None or settings.mode == "cloud":
        why = "mode cloud" if settings.mode == "cloud" else "no device_model is set"
        yield ok("model", f"{why}: the inference service answers")
        return
    began = time.monotonic()
    try:
        detector = load_detector(settings)
    except ImportError as error:
        extra = settings.detector
        yield failed(
            "model",
            f"detector {extra} needs {error.name}, which is not installed",
            install_hint(extra),
        )
        return
    except Exception as error:  # noqa: BLE001 - ultralytics raises what it likes on a broken file
        yield failed("model", _message(error), _what_to_do(settings))
        return
    if detector is None:
        return
    seconds = time.monotonic() - began
    try:
        note(detector)
        yield ok("model", f"{detector.name} {detector.version} loads in {seconds:.1f} s")
        yield from _classes(detector, settings)
        yield _run(detector, settings)
    finally:
        close_detector(detector)


def _classes(detector: Detector, settings: EdgeSettings) -> Iterator[Finding]:
    """Check the class names in the settings, if there are any."""
    labels, renamed = labels_of(detector), settings.label_map
    if not labels or not (settings.defect_classes or renamed) or settings.cloud_labels == "any":
        return
    if unknown := unknown_classes(labels, settings.defect_classes, renamed):
        action = f"Correct the name; {TAKE_OTHERS}."
        yield failed("model classes", unknown, action)
    else:
        yield ok("model classes", "the model has every class that the settings name")


def _run(detector: Detector, settings: EdgeSettings) -> Finding:
    from vision.trial import trial_images  # late: it needs NumPy

    times = []
    try:
        for image in trial_images(_SIDE, _SIDE):
            began = time.monotonic()
            detector.detect(image)
            times.append(time.monotonic() - began)
    except Exception as error:  # noqa: BLE001 - whatever the model raises
        return failed("model run", f"a run fails: {_message(error)}", _what_to_do(settings))
    seconds = statistics.median(times)
    share = assemble.policy(settings).device_share
    text = f"one image takes {seconds * 1000:.1f} ms on {_where(detector)}"
    if seconds >= share:
        return warning(
            "model run",
            f"{text}, longer than the {share:.1f} s that timeout_seconds leaves the device",
            "Use a smaller model or a faster provider, or raise timeout_seconds.",
        )
    return ok("model run", text)


def _where(detector: Detector) -> str:
    return str(getattr(detector, "provider", "ultralytics"))


def _what_to_do(settings: EdgeSettings) -> str:
    return (
        f"Check that {settings.device_model} is a whole model file for detector "
        f"{settings.detector}, and device_providers: `sightline models check` prints more."
    )


def _message(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())
