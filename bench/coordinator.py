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
        found = self._detector.detect(small)
        detections = tuple(map(_enlarged, found.detections))
        return replace(found, detections=detections, image_width=width, image_height=height)


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


def added(where: Services, folder: Path, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the latency that the node adds to the detector: medians of the rounds."""
    detector = OnnxDetector(MODEL)
    logger = PredictionLogger(where.ingest, device_id="bench", spool_dir=folder / "spool")
    with EdgeNode(detector, InferenceClient(where.inference), logger, Policy()) as node:
        for picture in pictures[:50]:  # warm
            detector.detect(picture)
            node.process(picture)
        rounds = [_round(detector.detect, node.process, pictures) for _ in range(ROUNDS)]
        if not logger.flush(60, until="committed"):
            raise RuntimeError("the log was not committed in a minute")
    medians = {name: round(median(one[name] for one in rounds), 3) for name in rounds[0]}
    return {"pictures": len(pictures), "rounds": ROUNDS, **medians}


def _round(
    alone: Callable[[NDArray[np.uint8]], object],
    inside: Callable[[NDArray[np.uint8]], object],
    pictures: Sequence[NDArray[np.uint8]],
) -> dict[str, float]:
    turns: list[tuple[Callable[[NDArray[np.uint8]], object], list[float]]]
    turns = [(alone, []), (inside, [])]
    for number, picture in enumerate(pictures):
        for call, seconds in turns if number % 2 else reversed(turns):
            began = time.perf_counter()
            call(picture)
            seconds.append(time.perf_counter() - began)
    figures: dict[str, float] = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        device, node = (percentile(seconds, share) for _, seconds in turns)
        figures[f"device_{name}_ms"] = milliseconds(device)
        figures[f"added_{name}_ms"] = milliseconds(node - device)
    return figures


def hedged(where: Services, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the latency of the answers with a hedge and without."""
    detector = OnnxDetector(MODEL)
    times: dict[Mode, list[float]] = {Mode.HEDGED: [], Mode.AUTO: []}
    with ExitStack() as stack:
        client = stack.enter_context(InferenceClient(where.inference))
        asked = {
            mode: stack.enter_context(
                InferenceCoordinator(
                    SlowTail(detector, seed=7), client, Policy(mode=mode, timeout=BUDGET)
                )
            )
            for mode in times
        }
        for picture in pictures[:40]:  # the hedge learns the usual latency
            for coordinator in asked.values():
                coordinator.ask(picture)
        for picture in pictures:
            for mode, coordinator in asked.items():
                began = time.perf_counter()
                coordinator.ask(picture)
                times[mode].append(time.perf_counter() - began)
        stats = asked[Mode.HEDGED].stats()
    return {
        "hedged_p99_ms": milliseconds(percentile(times[Mode.HEDGED], 0.99)),
        "auto_p99_ms": milliseconds(percentile(times[Mode.AUTO], 0.99)),
        "hedge_share": round(stats.hedges / (len(pictures) + 40), 4),
        "tail_share": TAIL_SHARE,
    }


def cascade(where: Services, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the bytes that a cascade sends, and how often it agrees with the cloud."""
    detector = ShortSighted(OnnxDetector(MODEL))
    encoded = [to_jpeg(picture) for picture in pictures]
    sent: dict[Mode, int] = {}
    found: dict[Mode, list[Sequence[Detection]]] = {}
    with InferenceClient(where.inference) as client:
        for mode in (Mode.CLOUD, Mode.DEVICE, Mode.CASCADE):
            policy = Policy(mode=mode, timeout=BUDGET, cascade=Cascade(any=True, empty=True))
            with InferenceCoordinator(detector, client, policy) as coordinator:
                answers = [coordinator.ask(picture) for picture in encoded]
            sent[mode] = sum(answer.cloud_bytes for answer in answers)
            found[mode] = [answer.detections for answer in answers]
    return {
        "cascade_bytes_ratio": round(sent[Mode.CASCADE] / sent[Mode.CLOUD], 3),
        "cascade_agreement": _agreement(found[Mode.CASCADE], found[Mode.CLOUD]),
        "device_agreement": _agreement(found[Mode.DEVICE], found[Mode.CLOUD]),
    }


def _agreement(one: Sequence[Sequence[Detection]], other: Sequence[Sequence[Detection]]) -> float:
    agreeing = sum(_agree(*pair) for pair in zip(one, other, strict=True))
    return round(agreeing / len(one), 3)


def _agree(one: Sequence[Detection], other: Sequence[Detection]) -> bool:
    return len(one) == len(other) and all(
        any(mine.class_id == theirs.class_id and _iou(mine, theirs) >= 0.5 for theirs in other)
        for mine in one
    )


def _iou(one: Detection, other: Detection) -> float:
    if one.box is None or other.box is None:
        return 0.0
    a, b = one.box, other.box
    width = min(a.x_max, b.x_max) - max(a.x_min, b.x_min)
    height = min(a.y_max, b.y_max) - max(a.y_min, b.y_min)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.x_max - box.x_min) * (box.y_max - box.y_min) for box in (a, b))
    return shared / (areas - shared) if shared else 0.0


def _enlarged(found: Detection) -> Detection:
    if found.box is None:
        return found
    x_min, y_min, x_max, y_max = (
        SHRUNK * edge
        for edge in (found.box.x_min, found.box.y_min, found.box.x_max, found.box.y_max)
    )
    return replace(found, box=Box(x_min, y_min, x_max, y_max))


def main() -> None:
    """Run the three parts and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=1000, help="for each part")
    count = parser.parse_args().pictures
    pictures = [make_plate(seed).image for seed in range(min(count, 300))]
    repeated = [pictures[index % len(pictures)] for index in range(count)]
    with tempfile.TemporaryDirectory() as name, services(Path(name)) as where:
        figures = {
            **added(where, Path(name), repeated),
            **hedged(where, repeated),
            **cascade(where, pictures),
        }
    print(json.dumps({"bench": "coordinator", **figures}))


if __name__ == "__main__":
    main()
