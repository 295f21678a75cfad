"""One question, ready to be sent, and to be sent again as the same question."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sightline.inference.v1 import inference_service_pb2

from edge.cloud.shrink import Scale
from edge.cloud.types import ModelHint

_CHUNK = 256 << 10
_UPLOADS = 2
"""How often an image is uploaded for one question at most: once more if it was lost there."""


@dataclass(slots=True)
class InferCall:
    """A question, with what has been done to deliver it; safe in threads.

    Attributes:
        question: the request, but for the bytes of its images.
        images: the encoded images, in the question's order.
        metadata: idempotency key and, if given, traceparent.
        scales: by index, of the images that were shrunk.
        bytes_saved: bytes of images that shrinking saves.
        bytes_sent: bytes of images that were handed to the connection so far.
    """

    request: inference_service_pb2.InferRequest
    images: tuple[bytes, ...]
    metadata: tuple[tuple[str, str], ...]
    scales: Mapping[int, Scale] = field(default_factory=dict)
    bytes_saved: int = 0
    bytes_sent: int = field(default=0, init=False)
    _references: dict[int, str] = field(default_factory=dict, init=False)
    _losses: dict[int, int] = field(default_factory=dict, init=False)
    _uploads: bool = field(default=True, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def model(self) -> ModelHint:
        """Which model is asked."""
        return ModelHint(self.request.model.name, self.request.model.version)

    def next_upload(self, above: int) -> int | None:
        """Return the index of an image that is to be uploaded first; None: there is none.

        Args:
            above: bytes from which on an image is too large to go with each try.
        """
        with self._lock:
            if not self._uploads:
                return None
            large = (
                index
                for index, data in enumerate(self.images)
                if len(data) > above
                and index not in self._references
                and self._losses.get(index, 0) < _UPLOADS
            )
            return next(large, None)

    def upload(self, index: int) -> Iterator[inference_service_pb2.UploadImageRequest]:
        """Yield the messages that upload an image, counting what leaves."""
        data = self.images[index]
        sha256 = self.request.images[index].sha256
        header = inference_service_pb2.UploadHeader(sha256=sha256, size_bytes=len(data))
        yield inference_service_pb2.UploadImageRequest(header=header)
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            with self._lock:
                self.bytes_sent += len(chunk)
            yield inference_service_pb2.UploadImageRequest(chunk=chunk)

    def uploaded(self, index: int, reference: str) -> None:
        """Take note of where an image was put."""
        with self._lock:
            self._references[index] = reference

    def lost(self, references: Mapping[int, str]) -> None:
        """Take note of references, by index, that the service does not know any more."""
        with self._lock:
            for index, reference in references.items():
                # A twin of this try may have seen the same loss, and the image be up again.
                if self._references.get(index) == reference:
                    del self._references[index]
                    self._losses[index] = self._losses.get(index, 0) + 1

    def stop_uploads(self) -> None:
        """Take note that what is not uploaded yet is to go with the question."""
        with self._lock:
            self._uploads = False

    def request_to_send(self) -> tuple[inference_service_pb2.InferRequest, Mapping[int, str]]:
        """Return the question, and the references in it by the index of the image."""
        request = inference_service_pb2.InferRequest()
        request.CopyFrom(self.request)
        with self._lock:
            references = dict(self._references)
            self.bytes_sent += sum(
                len(data) for index, data in enumerate(self.images) if index not in references
            )
        for index, image in enumerate(request.images):
            if index in references:
                image.reference = references[index]
            else:
                image.data = self.images[index]
        return request, references
