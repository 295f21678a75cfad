"""One prepared request to the inference service, which can be sent several times."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sightline.inference.v1 import inference_service_pb2

from edge.cloud.downscale import Scale
from edge.cloud.types import ModelHint

_CHUNK = 256 << 10
_UPLOADS = 2
"""Uploads of one image for one request, at most: a second one if the service lost the first."""


@dataclass(slots=True)
class InferCall:
    """A prepared request and the state of its uploads. Thread-safe.

    Attributes:
        request: the request without the bytes of its images.
        images: the encoded images, in the order of the request.
        metadata: idempotency key and, if there is one, traceparent.
        scales: scale of each downscaled image, by index.
        bytes_saved: image bytes that downscaling saves.
        bytes_sent: image bytes that were handed to the connection so far.
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
        """The requested model."""
        return ModelHint(self.request.model.name, self.request.model.version)

    def next_upload(self, above: int) -> int | None:
        """Return the index of the next image to upload before the request; None: there is none.

        Args:
            above: images of more bytes are uploaded instead of being sent with each try.
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
        """Yield the messages that upload an image, and count the bytes sent."""
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
        """Store the reference that the service returned for an uploaded image."""
        with self._lock:
            self._references[index] = reference

    def lost(self, references: Mapping[int, str]) -> None:
        """Drop references, by index, that the service no longer knows."""
        with self._lock:
            for index, reference in references.items():
                # A concurrent try may have seen the same loss and uploaded the image again.
                if self._references.get(index) == reference:
                    del self._references[index]
                    self._losses[index] = self._losses.get(index, 0) + 1

    def stop_uploads(self) -> None:
        """Send all images that are not uploaded yet with the request itself."""
        with self._lock:
            self._uploads = False

    def request_to_send(self) -> tuple[inference_service_pb2.InferRequest, Mapping[int, str]]:
        """Return the request to send, and the references in it by image index."""
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
