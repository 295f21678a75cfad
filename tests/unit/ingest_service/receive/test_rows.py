import base64
import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_pb2 import GapReason
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive.rows import originals
from ingest_service.store.gap_reasons import GAP_REASONS, gap_reason_name, gap_reason_number
from tests.unit.ingest_service.samples import prediction, request


def test_every_gap_reason_of_the_contract_has_its_name() -> None:
    names = [name.removeprefix("GAP_REASON_").lower() for name in GapReason.keys()]  # noqa: SIM118
    assert GapReason.values() == list(range(len(GAP_REASONS)))
    assert list(GAP_REASONS) == [None, *names[1:]]


@pytest.mark.parametrize("number", [1, 9, 10, 2**31 - 1])
def test_a_gap_reason_of_a_newer_contract_keeps_its_number(number: int) -> None:
    assert gap_reason_number(gap_reason_name(number) or "") == number


def test_an_original_is_the_prediction_in_protobufs_json() -> None:
    payload = request(prediction(1), prediction(2, image_id='say "cheese"\0')).SerializeToString()
    (original,) = originals(payload, [1], 1)
    assert json.loads(original)["image_id"] == 'say "cheese"\0'
    assert json.loads(original)["sequence"] == "2"


@pytest.mark.parametrize(
    "time", [Timestamp(seconds=2**62), Timestamp(nanos=-1), Timestamp(seconds=-(2**62))]
)
def test_what_json_cannot_say_is_kept_as_its_bytes(time: Timestamp) -> None:
    unsayable = prediction(1, captured_at=time)
    (original,) = originals(request(unsayable).SerializeToString(), [0], 1)
    kept = base64.b64decode(json.loads(original)["wire_base64"])
    assert Prediction.FromString(kept) == unsayable


def test_beyond_a_count_kept_jsonare_kept_as_their_bytes() -> None:
    sent = [prediction(n, image_id="bad") for n in (1, 2, 3)]
    kept_json = [
        json.loads(row) for row in originals(request(*sent).SerializeToString(), [0, 1, 2], 1)
    ]
    assert kept_json[0]["image_id"] == "bad"
    kept = [Prediction.FromString(base64.b64decode(row["wire_base64"])) for row in kept_json[1:]]
    assert kept == sent[1:]


def test_what_protobuf_itself_refuses_is_kept_as_the_whole_message() -> None:
    payload = b"\x12\x04\x0b\x14\x08\x01"  # an unpaired group, which ptars skips
    (original,) = originals(payload, [0], 1)
    assert base64.b64decode(json.loads(original)["message_base64"]) == payload
    assert json.loads(original)["prediction"] == 0
