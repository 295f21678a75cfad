"""Tests that damaged images and requests get an answer or a documented error."""

import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.inference.v1 import inference_service_pb2
from sightline.openinference.v2 import open_inference_pb2 as oip

from servicekit.errors import from_rpc_error
from tests.faults import inference_mutations
from tests.faults.campaign import Campaign
from tests.faults.inference_lab import Watched, watched
from tests.faults.inference_mutations import (
    Damaged,
    Tally,
    assert_documented,
    damaged_requests,
    documented,
)
from tests.faults.test_mutations import SLICES
from tests.integration.inference.process import SERVICE, client, names
from tests.unit.inference_service.open_inference.networks import network
from tests.unit.inference_service.tiny_onnx import colour_model, picture

PATIENT = pytest.mark.timeout(600)
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
MEMORY_BYTES = 32 << 20
AT_ONCE = 32
OPEN_SERVICE = "inference.GRPCInferenceService"
HANG_SECONDS = 30.0
_SHARED = [
    *(f"servicekit/calls/{n}.py" for n in ("gate", "memory_budget", "interceptors", "limits")),
    "vision/images.py",
]
_NOBODY_GETS = {
    *("MODEL_FILE_INVALID", "MODEL_FILE_MISSING", "MODEL_METADATA_INVALID", "MODEL_UNSUPPORTED"),
    *("MODEL_PROVIDER_UNAVAILABLE", "WORK_CANCELLED"),
}
"""Reasons of models that are not loaded, and of calls whose caller has gone."""


@pytest.mark.parametrize(
    "count", [pytest.param(4_000, marks=PATIENT), pytest.param(940_000, marks=SOAK)]
)
def test_what_is_read_in_process(
    tmp_path: Path, report: Callable[[Campaign], None], count: int
) -> None:
    total, size = Tally(), -(-count // SLICES)
    # Separate processes, so that a crash or hang in one does not end this one.
    with ProcessPoolExecutor(SLICES, mp_context=multiprocessing.get_context("spawn")) as pool:
        slices = pool.map(
            inference_mutations.run,
            range(SLICES),
            repeat(size),
            repeat(tmp_path),
            timeout=count / 100 + 60,
        )
        for tally in slices:
            total.add(tally)
    assert total.requests == size * SLICES >= count
    assert total.grown < MEMORY_BYTES
    assert 0.1 < total.answered / total.requests < 0.9, "the requests must be of both kinds"
    report(Campaign("damaged requests, read", total.requests, 0, 0, 0, _note(total)))


@pytest.mark.parametrize(
    "count", [pytest.param(1_000, marks=PATIENT), pytest.param(60_000, marks=SOAK)]
)
def test_what_is_sent_over_the_wire(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[[Campaign], None],
    count: int,
) -> None:
    colour_model(tmp_path / "models/colours/1/model.onnx", batches=True)
    network(tmp_path / "models/two/1/model.onnx")
    (tmp_path / "models/two/1/model.yaml").write_text("task: classify\n")
    flags = [
        *("--model-repository", str(tmp_path / "models"), "--default-model", "colours"),
        *("--max-images", "4", "--max-image-bytes", "200000", "--max-image-pixels", "1000000"),
        *("--queue-size", "1000", "--max-batch-size", "4"),
        *("--upload-ttl-seconds", "1", "--upload-quota-count", "1000000"),
    ]
    tally = Tally()
    with watched(tmp_path, monkeypatch, *flags) as lab:
        requests = damaged_requests(7, count)
        _send(lab, (next(requests) for _ in range(count // 3)), tally)
        before = lab.held()
        _send(lab, requests, tally)
        with client(lab.server) as stub:
            assert names(stub.infer(picture()).results[0]) == ["red"]
        after = lab.held_without_growth(before)
        lab.stop()
    assert tally.requests == count
    tally.grown = max(after.memory - before.memory, 0)
    report(Campaign("damaged requests, sent", tally.requests, 0, 0, 0, _note(tally)))


def test_the_documentation_names_every_reason() -> None:
    root = Path(inference_mutations.__file__).parents[2]
    sources = [*root.glob("inference_service/**/*.py"), *(root / name for name in _SHARED)]
    written = {
        reason
        for path in sources
        for reason in re.findall(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"', path.read_text())
    }
    assert written - _NOBODY_GETS <= documented()
    assert {"IMAGE_CORRUPT", "QUEUE_FULL", "SHUTTING_DOWN", "REFERENCE_GONE"} <= written


def _note(tally: Tally) -> str:
    refused = ", ".join(f"{count} {reason}" for reason, count in tally.refused.most_common(3))
    return (
        f"{tally.answered} answered; {tally.refused.total()} refused ({refused}, ...);"
        f" slowest {tally.slowest:.2f} s; {tally.grown / 2**20:.0f} MiB grown"
    )


def _send(lab: Watched, requests: Iterable[Damaged], tally: Tally) -> None:
    """Send requests, some at a time, and check the answers."""
    with client(lab.server) as stub:
        callers = {
            "Infer": stub.raw,
            "ModelInfer": stub.channel.unary_unary(f"/{OPEN_SERVICE}/ModelInfer", None, None),
            "UploadImage": stub.channel.stream_unary(f"/{SERVICE}/UploadImage", None, None),
        }
        waiting = iter(requests)
        while some := list(islice(waiting, AT_ONCE)):
            calls = [_Call(callers[damaged.method], damaged) for damaged in some]
            for call in calls:
                call.check(tally)


class _Call:
    """A request in flight."""

    def __init__(self, caller: Any, damaged: Damaged) -> None:
        self._one = damaged
        self._ended = 0.0
        self._begun = time.perf_counter()
        messages = (
            iter(damaged.messages) if damaged.method == "UploadImage" else damaged.messages[0]
        )
        self._future = caller.future(messages, timeout=HANG_SECONDS)
        self._future.add_done_callback(self._note_end)

    def check(self, tally: Tally) -> None:
        """Fail unless the answer is right; add it to the tally."""
        try:
            answer = self._future.result()
        except grpc.RpcError as failed:
            error = from_rpc_error(failed)
            assert_documented(error.code.name, error.reason, self._one)
            tally.refused[error.reason] += 1
        else:
            _ANSWERS[self._one.method](self._one, answer)
            tally.answered += 1
        tally.requests += 1
        tally.slowest = max(tally.slowest, (self._ended or time.perf_counter()) - self._begun)

    def _note_end(self, _future: object) -> None:
        self._ended = time.perf_counter()


def _check_infer(damaged: Damaged, data: bytes) -> None:
    request = inference_service_pb2.InferRequest.FromString(damaged.messages[0])
    answer = inference_service_pb2.InferResponse.FromString(data)
    assert len(answer.results) == len(request.images)
    reasons = Counter(result.error.reason for result in answer.results if result.HasField("error"))
    assert reasons.keys() <= documented(), reasons
    assert reasons.total() < len(answer.results), "a call without one good picture must fail"


def _check_model_infer(damaged: Damaged, data: bytes) -> None:
    request = oip.ModelInferRequest.FromString(damaged.messages[0])
    answer = oip.ModelInferResponse.FromString(data)
    assert answer.id == request.id
    assert len(answer.raw_output_contents) == len(answer.outputs) >= 1


def _check_upload(damaged: Damaged, data: bytes) -> None:
    answer = inference_service_pb2.UploadImageResponse.FromString(data)
    header = inference_service_pb2.UploadImageRequest.FromString(damaged.messages[0]).header
    assert (answer.image.sha256, answer.image.size_bytes) == (header.sha256, header.size_bytes)


_ANSWERS: dict[str, Callable[[Damaged, bytes], None]] = {
    "Infer": _check_infer,
    "ModelInfer": _check_model_infer,
    "UploadImage": _check_upload,
}
