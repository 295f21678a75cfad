"""What the inference service can be told."""

import os
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from servicekit.server_settings import ServerSettings
from servicekit.settings import Address, Words

_MESSAGE_MARGIN = 64 * 1024  # what a message holds beside its picture


def _cpus() -> int:
    return os.cpu_count() or 1


class InferenceSettings(ServerSettings):
    """Settings of the inference service."""

    part: ClassVar[str] = "inference"

    listen: Address = Field(
        "127.0.0.1:50052",
        description="address to serve gRPC on: host:port, [IPv6]:port or unix:path; port 0: any",
    )
    max_message_bytes: int = Field(
        32 * 1024 * 1024,
        ge=1024,
        le=2**31 - 1,
        description="largest message in either direction, bytes; more than max_image_bytes",
    )
    model_repository: Path = Field(
        Path("models/repository"), description="folder of <name>/<version>/model.onnx"
    )
    default_model: str = Field(
        "", description="model of a request that names none; empty: the repository's only one"
    )
    providers: Words = Field(
        ("CPUExecutionProvider",),
        min_length=1,
        description="ONNX Runtime's execution providers, comma-separated, first choice first, such"
        " as CUDAExecutionProvider,CPUExecutionProvider; one that is missing prevents the start",
    )
    workers: int = Field(
        default_factory=_cpus,
        ge=1,
        le=256,
        description="pictures that are worked on at a time; not given: one per CPU",
    )
    intra_op_threads: int = Field(
        1, ge=1, le=256, description="CPU threads that one run of a model uses"
    )
    queue_size: int = Field(
        64, ge=1, le=100_000, description="pictures that wait for a worker at most"
    )
    max_images: int = Field(16, ge=1, le=1024, description="pictures of one request at most")
    max_image_bytes: int = Field(
        10 * 1024 * 1024, ge=1, le=2**31 - 1, description="largest encoded picture, bytes"
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=2**31 - 1, description="largest picture, width times height, pixels"
    )
    idempotency_database: str = Field(
        "",
        description="SQLite file that keeps answers for their retries; empty: a temporary file that"
        " ends with the process",
    )
    idempotency_ttl_seconds: float = Field(
        86_400.0, gt=0, le=31_536_000, description="how long answers are kept for their retries, s"
    )

    @model_validator(mode="after")
    def _room_for_one_request(self) -> Self:
        if self.queue_size < self.max_images:
            raise ValueError(
                f"queue_size: must be at least max_images, {self.max_images}"
                f" (got {self.queue_size})"
            )
        least = self.max_image_bytes + _MESSAGE_MARGIN
        if self.max_message_bytes < least:
            raise ValueError(
                f"max_message_bytes: must be at least max_image_bytes and 64 KiB, {least}"
                f" (got {self.max_message_bytes})"
            )
        return self
