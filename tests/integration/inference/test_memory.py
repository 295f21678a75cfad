"""Item 19 of issue 11: a service without memory tells callers to ask again, and keeps nothing."""

import uuid
from pathlib import Path

import pytest

from servicekit.errors import SightlineError
from tests.integration.inference.process import ask, client, failure, names, started
from tests.unit.inference_service.tiny_onnx import picture
from tests.unit.servicekit.scarce import headroom

MIB = 1 << 20


def assert_passes(error: SightlineError) -> None:
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
    assert error.retryable
    assert error.retry_after is not None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_without_memory_is_not_kept_as_corrupt(
    tmp_path: Path, colours: Path, kind: str
) -> None:
    large = picture((0, 0, 255), size=(6000, 6000), kind=kind)
    flags = ("--model-repository", str(colours), "--default-model", "colours")
    with started(tmp_path, *flags) as server, client(server) as caller:
        assert names(caller.infer(picture()).results[0]) == ["red"]
        key = (("idempotency-key", str(uuid.uuid4())),)

        def infer() -> list[str]:
            answer = caller.stub.Infer(ask(large), timeout=30, metadata=key)
            return list(names(answer.results[0]))

        headroom(server.process.pid, 40 * MIB)
        assert_passes(failure(infer))
        headroom(server.process.pid, None)
        assert infer() == ["blue"], "the same key: a lack of memory is not an answer"
        assert caller.health() == "SERVING"


def test_a_request_that_cannot_be_parsed_for_want_of_memory(tmp_path: Path, colours: Path) -> None:
    flags = ("--model-repository", str(colours), "--default-model", "colours")
    with started(tmp_path, *flags) as server, client(server) as caller:
        assert names(caller.infer(picture()).results[0]) == ["red"]
        tiny = b"\x0a\x00" * 1_500_000  # as many empty pictures
        headroom(server.process.pid, 60 * MIB)
        assert_passes(failure(lambda: caller.raw(tiny, timeout=30)))
        headroom(server.process.pid, None)
        assert failure(lambda: caller.raw(tiny, timeout=30)).code.name == "INVALID_ARGUMENT"
        assert names(caller.infer(picture()).results[0]) == ["red"]
