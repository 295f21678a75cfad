"""Benchmark of the coordinator: the latency that it adds and the effect of the cloud fallback.

`python -m bench.coordinator` prints one JSON line. Both services run as processes on this machine,
with the demo model on either side.

- `added_p50_ms`, `added_p99_ms`: percentiles of `EdgeNode.process` with logging, minus those of
  the detector alone, on the same images; the order alternates. Medians of five rounds: one
  round differs from the next by 0.2 ms at p50 and 1 ms at p99 on a machine that others share.
- `hedged_p99_ms`, `auto_p99_ms`: a device that takes half a second longer for 3 runs in 100, with
  a hedged request to the cloud, and without. Both modes alternate, image by image.
- `cascade_bytes_ratio`: bytes of images sent to the cloud in mode `cascade`, over those in mode
  `cloud`. `cascade_agreement`: share of images for which it answers as the cloud does, and
  `device_agreement` the same for the device alone, which sees each image at a quarter of its
  width and height as a small model would. Two answers agree when each box of one has a box in the
  other, of the same class and with an overlap (IoU) of at least 0.5.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bench.infer.figures import milliseconds, percentile
from edge.detect import Image
from edge.detect.images import pixels
from models.plates import make_plate, to_jpeg
from sightline import (
    Box,
    Cascade,
    Detection,
    Detector,
    DetectorResult,
    EdgeNode,
    InferenceClient,
    InferenceCoordinator,
    Mode,
    OnnxDetector,
    Policy,
    PredictionLogger,
)
from sightline.cli.processes import ServiceProcess

MODELS = Path(__file__).parents[1] / "models" / "repository"
MODEL = MODELS / "plates" / "1" / "model.onnx"
TAIL_SHARE = 0.03
"""Below 5 %, so that the device's 95th percentile is that of a fast run."""
TAIL_SECONDS = 0.5
SHRUNK = 4
ROUNDS = 5
BUDGET = 8.0


class SlowTail:
    """A detector some of whose runs take longer, as under a thermal limit or CPU load."""

    def __init__(self, detector: Detector, seed: int) -> None:
        self._detector = detector
        self._chance = random.Random(seed)
        self.name, self.version = detector.name, detector.version

    def detect(self, image: Image) -> DetectorResult:
        """Return the model's detections, sometimes late."""
        if self._chance.random() < TAIL_SHARE:
            time.sleep(TAIL_SECONDS)
        return self._detector.detect(image)


class ShortSighted:
    """A detector that sees each image at a fraction of its size."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.name, self.version = detector.name, detector.version

    def detect(self, image: Image) -> DetectorResult:
        """Return the detections of the small image, in pixels of the large one."""
        whole = pixels(image)
        height, width, _ = whole.shape
        size = (width // SHRUNK, height // SHRUNK)
        small: NDArray[np.uint8] = np.asarray(PIL.Image.fromarray(whole).resize(size))
        result = self._detector.detect(small)
        detections = tuple(map(_enlarged, result.detections))
        return replace(result, detections=detections, image_width=width, image_height=height)


@dataclass(frozen=True)
class Services:
    """The addresses of both services."""

    ingest: str
    inference: str


@contextmanager
def services(folder: Path) -> Iterator[Services]:
    """Run both services as processes on free loopback ports."""
    quiet = ["--listen", "127.0.0.1:0", "--log-level", "warning"]
    with ExitStack() as stack:
        database = ["--database", str(folder / "bench.duckdb")]
        ingest = stack.enter_context(ServiceProcess("ingest_service", [*quiet, *database]))
        models = ["--model-repository", str(MODELS)]
        inference = stack.enter_context(ServiceProcess("inference_service", [*quiet, *models]))
        yield Services(ingest.address, inference.address)


def added(where: Services, folder: Path, images: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the latency that the node adds to the detector: medians of the rounds."""
    detector = OnnxDetector(MODEL)
    logger = PredictionLogger(where.ingest, device_id="bench", spool_dir=folder / "spool")
    with EdgeNode(detector, InferenceClient(where.inference), logger, Policy()) as node:
        for image in images[:50]:  # warm
            detector.detect(image)
            node.process(image)
        rounds = [_round(detector.detect, node.process, images) for _ in range(ROUNDS)]
        if not logger.flush(60, until="committed"):
            raise RuntimeError("the log was not committed in a minute")
    medians = {name: round(median(figures[name] for figures in rounds), 3) for name in rounds[0]}
    return {"pictures": len(images), "rounds": ROUNDS, **medians}


def _round(
    alone: Callable[[NDArray[np.uint8]], object],
    inside: Callable[[NDArray[np.uint8]], object],
    images: Sequence[NDArray[np.uint8]],
) -> dict[str, float]:
    turns: list[tuple[Callable[[NDArray[np.uint8]], object], list[float]]]
    turns = [(alone, []), (inside, [])]
    for number, image in enumerate(images):
        for call, seconds in turns if number % 2 else reversed(turns):
            began = time.perf_counter()
            call(image)
            seconds.append(time.perf_counter() - began)
    figures: dict[str, float] = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        device, node = (percentile(seconds, share) for _, seconds in turns)
        figures[f"device_{name}_ms"] = milliseconds(device)
        figures[f"added_{name}_ms"] = milliseconds(node - device)
    return figures


def hedged(where: Services, images: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the latency of the answers with a hedge and without."""
    detector = OnnxDetector(MODEL)
    times: dict[Mode, list[float]] = {Mode.HEDGED: [], Mode.AUTO: []}
    with ExitStack() as stack:
        client = stack.enter_context(InferenceClient(where.inference))
        coordinators = {
            mode: stack.enter_context(
                InferenceCoordinator(
                    SlowTail(detector, seed=7), client, Policy(mode=mode, timeout=BUDGET)
                )
            )
            for mode in times
        }
        for image in images[:40]:  # the hedge learns the usual latency
            for coordinator in coordinators.values():
                coordinator.ask(image)
        for image in images:
            for mode, coordinator in coordinators.items():
                began = time.perf_counter()
                coordinator.ask(image)
                times[mode].append(time.perf_counter() - began)
        stats = coordinators[Mode.HEDGED].stats()
    return {
        "hedged_p99_ms": milliseconds(percentile(times[Mode.HEDGED], 0.99)),
        "auto_p99_ms": milliseconds(percentile(times[Mode.AUTO], 0.99)),
        "hedge_share": round(stats.hedges / (len(images) + 40), 4),
        "tail_share": TAIL_SHARE,
    }


def cascade(where: Services, images: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the bytes that a cascade sends, and how often it agrees with the cloud."""
    detector = ShortSighted(OnnxDetector(MODEL))
    encoded = [to_jpeg(image) for image in images]
    sent: dict[Mode, int] = {}
    detections: dict[Mode, list[Sequence[Detection]]] = {}
    with InferenceClient(where.inference) as client:
        for mode in (Mode.CLOUD, Mode.DEVICE, Mode.CASCADE):
            policy = Policy(mode=mode, timeout=BUDGET, cascade=Cascade(any=True, empty=True))
            with InferenceCoordinator(detector, client, policy) as coordinator:
                answers = [coordinator.ask(image) for image in encoded]
            sent[mode] = sum(answer.cloud_bytes for answer in answers)
            detections[mode] = [answer.detections for answer in answers]
    return {
        "cascade_bytes_ratio": round(sent[Mode.CASCADE] / sent[Mode.CLOUD], 3),
        "cascade_agreement": _agreement(detections[Mode.CASCADE], detections[Mode.CLOUD]),
        "device_agreement": _agreement(detections[Mode.DEVICE], detections[Mode.CLOUD]),
    }


def _agreement(
    first: Sequence[Sequence[Detection]], second: Sequence[Sequence[Detection]]
) -> float:
    agreeing = sum(_agree(*pair) for pair in zip(first, second, strict=True))
    return round(agreeing / len(first), 3)


def _agree(first: Sequence[Detection], second: Sequence[Detection]) -> bool:
    return len(first) == len(second) and all(
        any(mine.class_id == theirs.class_id and _iou(mine, theirs) >= 0.5 for theirs in second)
        for mine in first
    )


def _iou(first: Detection, second: Detection) -> float:
    if first.box is None or second.box is None:
        return 0.0
    a, b = first.box, second.box
    width = min(a.x_max, b.x_max) - max(a.x_min, b.x_min)
    height = min(a.y_max, b.y_max) - max(a.y_min, b.y_min)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.x_max - box.x_min) * (box.y_max - box.y_min) for box in (a, b))
    return shared / (areas - shared) if shared else 0.0


def _enlarged(detection: Detection) -> Detection:
    if detection.box is None:
        return detection
    x_min, y_min, x_max, y_max = (
        SHRUNK * edge
        for edge in (
            detection.box.x_min,
            detection.box.y_min,
            detection.box.x_max,
            detection.box.y_max,
        )
    )
    return replace(detection, box=Box(x_min, y_min, x_max, y_max))


def main() -> None:
    """Run the three parts and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=1000, help="for each part")
    count = parser.parse_args().pictures
    images = [make_plate(seed).image for seed in range(min(count, 300))]
    repeated = [images[index % len(images)] for index in range(count)]
    with tempfile.TemporaryDirectory() as name, services(Path(name)) as where:
        figures = {
            **added(where, Path(name), repeated),
            **hedged(where, repeated),
            **cascade(where, images),
        }
    print(json.dumps({"bench": "coordinator", **figures}))


if __name__ == "__main__":
    main()
