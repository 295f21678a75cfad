"""Digests of predictions, computed from the received bytes without Python objects.

Digests are kept for two predictions of a spool: the first and the last committed one. A digest does
not depend on the order of a prediction's fields: a client that serializes the same prediction again
may write its labels in another order (Go does), which is the same content.
"""

from hashlib import blake2b

DIGEST_BYTES = 16
MAX_FIELDS = 10_240
"""Maximum number of fields of a prediction with a digest. A valid prediction has fewer: 10 000
detections, 64 labels and a dozen others. The limit bounds the time for one message."""
_PREDICTIONS = 2
"""Number of the field `PredictionLogRequest.predictions`."""
_ENTRY = _PREDICTIONS << 3 | 2
_LENGTH_DELIMITED, _GROUP, _END_OF_GROUP = 2, 3, 4
_FIXED = {1: 8, 5: 4}


def digest_in(payload: bytes, index: int) -> bytes | None:
    """Return the digest of a prediction of a message.

    Args:
        payload: a `PredictionLogRequest` that was decoded without an error.
        index: index of the prediction in the message, from 0.

    Returns:
        `DIGEST_BYTES` bytes. None: no protobuf library writes such bytes, or the prediction has
        more than `MAX_FIELDS` fields.
    """
    try:
        prediction = _find(payload, index)
        return None if prediction is None else digest(prediction)
    except IndexError:
        return None


def digest(prediction: bytes) -> bytes | None:
    """Return the digest of a serialized `Prediction`; None: it has too many fields.

    Raises:
        IndexError: it is truncated.
    """
    # Each field contains its length, so no two lists of fields join to the same bytes.
    fields = _fields(prediction)
    if len(fields) > MAX_FIELDS:
        return None
    return blake2b(b"".join(sorted(fields)), digest_size=DIGEST_BYTES).digest()


def _find(payload: bytes, index: int) -> bytes | None:
    """Return the bytes of a prediction. Inlined, because it skips all predictions before it."""
    at, size = 0, len(payload)
    while at < size:
        tag = payload[at]
        if tag == _ENTRY:
            at += 1
        else:
            tag, at = _varint(payload, at)
            if tag != _ENTRY:
                at = _skip(payload, at, tag)
                continue
        length = payload[at]
        at += 1
        if length > 127:
            more = payload[at]
            if more < 128:  # two bytes, as of most predictions with detections
                length, at = length & 127 | more << 7, at + 1
            else:
                length, at = _varint(payload, at - 1)
        if not index:
            return payload[at : at + length]
        index -= 1
        at += length
    return None


def _fields(message: bytes) -> list[bytes]:
    """Return each field of a message with its tag. Inlined like `_find`.

    It stops after `MAX_FIELDS` + 1 fields.
    """
    fields: list[bytes] = []
    at, size = 0, len(message)
    while at < size and len(fields) <= MAX_FIELDS:
        start, tag = at, message[at]
        at += 1
        if tag > 127:
            tag, at = _varint(message, start)
        if tag & 7 == _LENGTH_DELIMITED and message[at] < 128:  # like most fields
            at += 1 + message[at]
        else:
            at = _skip(message, at, tag)
        fields.append(message[start:at])
    return fields


def _skip(message: bytes, at: int, tag: int) -> int:
    """Return the end of the value whose tag ends at `at`."""
    kind = tag & 7
    if kind == 0:
        return _varint(message, at)[1]
    if kind == _LENGTH_DELIMITED:
        length, at = _varint(message, at)
        return at + length
    if kind in _FIXED:
        return at + _FIXED[kind]
    if kind != _GROUP:
        raise IndexError("unknown wire type")
    depth = 1  # without recursion: groups may nest as deep as a message is long
    while depth:
        inner, at = _varint(message, at)
        if inner & 7 == _GROUP:
            depth += 1
        elif inner & 7 == _END_OF_GROUP:
            depth -= 1
        else:
            at = _skip(message, at, inner)
    return at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    byte = message[at]
    number, shift = byte & 127, 7
    while byte > 127:
        at += 1
        byte = message[at]
        number |= (byte & 127) << shift
        shift += 7
    return number, at + 1
