"""Messages as JSON: numbers are numbers, absent is null, and the schemas say the same."""

import struct
from decimal import Decimal
from typing import Any

import jsonschema
import orjson
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, reads_pb2
from sightline.types.v1 import prediction_pb2

import console_service.app
from console_service.schemas import components, schema_of
from servicekit.plain import SPAN, TIME, is_map, plain, value_of, words_of

ANSWERS = [name for name in components() if name != "Error"]
MODULES = (ingest_pb2, ingest_service_pb2, reads_pb2, prediction_pb2)
assert console_service.app  # its routes name the messages that have a schema


def message_of(name: str) -> Any:
    """Return a class of the contract's messages by its short name."""
    from sightline.inference.v1 import inference_pb2, inference_service_pb2

    modules = (*MODULES, inference_pb2, inference_service_pb2)
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def filled(message: Message, depth: int = 0) -> Message:
    """Set every field of a message, one of each `oneof`."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof and message.WhichOneof(field.containing_oneof.name):
            continue
        _fill(message, field, depth)
    return message


def _fill(message: Message, field: Any, depth: int) -> None:
    values = {
        FieldDescriptor.TYPE_STRING: "text",
        FieldDescriptor.TYPE_BYTES: b"\x00\xff",
        FieldDescriptor.TYPE_BOOL: True,
        FieldDescriptor.TYPE_FLOAT: 0.9,
        FieldDescriptor.TYPE_DOUBLE: 0.5,
    }
    if is_map(field):
        getattr(message, field.name)["key"] = values.get(value_of(field).type, 7)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner = inner.add() if field.is_repeated else inner
        inner.SetInParent()
        if field.message_type.full_name == TIME:
            inner.FromJsonString("2026-11-30T12:00:00.5Z")
        elif field.message_type.full_name == SPAN:
            inner.FromMilliseconds(1500)
        elif depth < 6:
            filled(inner, depth + 1)
    else:
        value = 1 if field.enum_type is not None else values.get(field.type, 2**53 - 1)
        if field.type == FieldDescriptor.TYPE_INT32:
            value = 7
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("is_filled", [True, False])
def test_the_schema_of_an_answer_is_true(name: str, is_filled: bool) -> None:
    """Each field of the descriptor is in the JSON, and the JSON is as OpenAPI says."""
    kind = message_of(name)
    message = filled(kind()) if is_filled else kind()
    found = orjson.loads(orjson.dumps(plain(message)))
    assert list(found) == [field.name for field in message.DESCRIPTOR.fields]
    schema = {**schema_of(kind.DESCRIPTOR), "components": {"schemas": components()}}
    jsonschema.Draft202012Validator(schema).validate(found)


def test_counts_are_numbers_and_absent_is_null() -> None:
    found = plain(ingest_pb2.CountByKey(key="gate-1", count=2**53 + 1, with_verdict=0))
    assert found == {"key": "gate-1", "count": 2**53 + 1, "defects": 0, "with_verdict": 0}
    assert plain(ingest_pb2.CountByKey())["with_verdict"] is None


def test_times_are_rfc_3339_and_lengths_of_time_are_seconds() -> None:
    stored = ingest_pb2.StoredPrediction(
        received_at=Timestamp(seconds=1, nanos=500_000_000), clock_offset=Duration(seconds=-1)
    )
    found = plain(stored)
    assert (found["received_at"], found["clock_offset"]) == ("1970-01-01T00:00:01.500Z", -1)
    assert (found["prediction"], found["device_id"]) == (None, "")


def test_a_prediction_has_the_words_of_the_contract() -> None:
    prediction = prediction_pb2.Prediction(
        source=prediction_pb2.PREDICTION_SOURCE_CLOUD,
        cloud_reason=prediction_pb2.CLOUD_REASON_DEVICE_FAILED,
        labels={"line": "4"},
        defect_detected=False,
    )
    found = plain(prediction)
    assert (found["source"], found["cloud_reason"]) == ("cloud", "device_failed")
    assert (found["labels"], found["defect_detected"]) == ({"line": "4"}, False)
    unset = plain(prediction_pb2.Prediction())
    assert (unset["source"], unset["cloud_reason"], unset["detections"]) == (None, None, [])


def test_an_original_that_is_json_is_not_quoted_twice() -> None:
    assert plain(reads_pb2.StoredRejection(original='{"a": 1}'))["original"] == {"a": 1}
    assert plain(reads_pb2.StoredRejection(original="{torn"))["original"] == "{torn"


def digits(number: float) -> int:
    return len(Decimal(repr(number)).normalize().as_tuple().digits)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_is_the_shortest_number_that_is_it(value: float) -> None:
    found = plain(prediction_pb2.Detection(confidence=value))["confidence"]
    assert struct.pack("<f", found) == struct.pack("<f", value)
    assert digits(float(str(found))) <= min(9, digits(value))


def test_a_float_that_is_no_number_is_null() -> None:
    found = orjson.loads(orjson.dumps(plain(prediction_pb2.Detection(confidence=float("nan")))))
    assert found["confidence"] is None


def test_the_words_of_each_enum_are_without_its_prefix() -> None:
    words = words_of(ingest_pb2.GapReason.DESCRIPTOR)
    assert (words[0], words[5]) == (None, "disk_reserve")
