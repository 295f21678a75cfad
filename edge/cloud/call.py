"""One question, ready to be sent, and to be sent again as the same question."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sightline.inference.v1 import inference_pb2, inference_service_pb2

from edge.cloud.shrink import Scale

_CHUNK = 256 << 10
_UPLOADS = 2
"""How often a picture is uploaded for one question at most: once more if it was lost there."""


@dataclass(slots=True)
class InferCall:
    """A question, with what has been done to deliver it; safe in threads.

    Attributes:
        request: with every picture in it.
        metadata: idempotency key and, if given, traceparent.
        scales: by index, of the pictures that were shrunk.
        bytes_saved: bytes of pictures that shrinking saves.
        bytes_sent: bytes of pictures that have left so far.
    """

    request: inference_service_pb2.InferRequest
    metadata: tuple[tuple[str, str], ...]
    scales: Mapping[int, Scale] = field(default_factory=dict)
    bytes_saved: int = 0
    bytes_sent: int = 0
    _sizes: tuple[int, ...] = field(init=False)  # each look at `data` is a copy of it
    _references: dict[int, str] = field(default_factory=dict)
    _uploads: int = _UPLOADS
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._sizes = tuple(len(image.data) for image in self.request.images)

    def to_upload(self, above: int) -> int | None:
        """Returns the index of a picture that is to be uploaded first; None: there is none.

        Args:
            above: bytes from which on a picture is too large to go with each try.
        """
        with self._lock:
            if not self._uploads:
                return None
            large = (
                index
                for index, size in enumerate(self._sizes)
                if size > above and index not in self._references
            )
            return next(large, None)

    def upload(self, index: int) -> Iterator[inference_service_pb2.UploadImageRequest]:
        """Yields the messages that upload a picture, counting what leaves."""
        image = self.request.images[index]
        data = image.data
        header = inference_service_pb2.UploadHeader(sha256=image.sha256, size_bytes=len(data))
        yield inference_service_pb2.UploadImageRequest(header=header)
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            with self._lock:
                self.bytes_sent += len(chunk)
            yield inference_service_pb2.UploadImageRequest(chunk=chunk)

    def uploaded(self, index: int, reference: str) -> None:
        """Takes note of where a picture was put."""
        with self._lock:
            self._references[index] = reference

    def lost(self) -> None:
        """Takes note that the service does not know a reference any more: all are put anew."""
        with self._lock:
            self._references.clear()
            self._uploads -= 1

    def no_uploads(self) -> None:
        """Takes note that the service takes no uploads: the pictures go with the question."""
        with self._lock:
            self._references.clear()
            self._uploads = 0

    @property
    def has_references(self) -> bool:
        """Whether a picture is referred to."""
        return bool(self._references)

    def to_send(self) -> inference_service_pb2.InferRequest:
        """Returns the question with references in place of what was uploaded."""
        with self._lock:
            references = dict(self._references)
            self.bytes_sent += sum(
                size for index, size in enumerate(self._sizes) if index not in references
            )
        if not references:
            return self.request
        return inference_service_pb2.InferRequest(
            images=[
                _referring(image, references[index]) if index in references else image
                for index, image in enumerate(self.request.images)
            ],
            model=self.request.model if self.request.HasField("model") else None,
            parameters=self.request.parameters if self.request.HasField("parameters") else None,
        )


def _referring(image: inference_pb2.Image, reference: str) -> inference_pb2.Image:
    return inference_pb2.Image(image_id=image.image_id, reference=reference, sha256=image.sha256)
