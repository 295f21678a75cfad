"""What the inference service can be told."""

import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from servicekit.auth.caller import is_name
from servicekit.server_settings import ServerSettings, check_secret
from servicekit.settings import Address, OptionalPath, OptionalSecret, Words

_WEIGHT = re.compile(r".+=\d{1,4}(\.\d{1,6})?", re.ASCII | re.DOTALL)
_MOST_WEIGHT = 1000
_MESSAGE_MARGIN = 64 * 1024  # what a message holds beside its image


def _cpus() -> int:
    return os.cpu_count() or 1


class InferenceSettings(ServerSettings):
    """Settings of the inference service."""

    part: ClassVar[str] = "inference"

    listen: Address = Field(
        "127.0.0.1:50052",
        description="address to serve gRPC on: host:port, [IPv6]:port or unix:path; port 0: any",
    )
    # gRPC copies a message on the event loop, some 2.4 ms per MB: other calls wait for that long.
    max_message_bytes: int = Field(
        16 * 1024 * 1024,
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
    default_versions: Words = Field(
        (),
        description="versions of requests that name none, comma-separated, such as plates=2;"
        " not given for a model: its highest that can be loaded",
    )
    repository_poll_seconds: float = Field(
        5.0,
        ge=0,
        le=86_400,
        description="time between two looks for changes in model_repository, s; what is new must"
        " be the same at two looks; 0: only on SIGHUP",
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
        description="images that are worked on at a time; not given: one per CPU",
    )
    intra_op_threads: int = Field(
        1, ge=1, le=256, description="CPU threads that one run of a model uses"
    )
    device_id: int = Field(0, ge=0, le=255, description="number of the GPU that models run on")
    gpu_memory_bytes: int | None = Field(
        None,
        ge=1,
        le=1 << 50,
        description="memory of the GPU that each model may take, bytes; not given: what it needs",
    )
    engine_cache: OptionalPath = Field(
        None, description="folder where TensorRT keeps the engines that it builds; empty: none"
    )
    tensorrt_fp16: bool = Field(
        False, description="whether TensorRT may compute in half precision, which changes results"
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="images of one run at most, of models that take any number; 1: each alone;"
        " not given: 8 on a GPU, 1 on CPUs",
    )
    batch_wait_seconds: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how long a run that is not full waits for more images, s, if all can spare it",
    )
    queue_size: int = Field(
        64,
        ge=1,
        le=100_000,
        description="images that wait for a worker at most, shared between callers; one that had"
        " less than its share may add a request, up to twice as many in all",
    )
    caller_weights: Words = Field(
        (),
        description="weights of callers by their names, comma-separated, such as gate-1=2: twice"
        " what a caller of weight 1 gets of the workers when both want more than there is; above 0"
        " and up to 1000; not given for a caller: 1",
    )
    max_images: int = Field(16, ge=1, le=1024, description="images of one request at most")
    max_image_bytes: int = Field(
        10 * 1024 * 1024, ge=1, le=2**31 - 1, description="largest encoded image, bytes"
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=2**31 - 1, description="largest image, width times height, pixels"
    )
    idempotency_database: str = Field(
        "",
        description="SQLite file that keeps answers for their retries; empty: a temporary file that"
        " ends with the process",
    )
    idempotency_ttl_seconds: float = Field(
        86_400.0, gt=0, le=31_536_000, description="how long answers are kept for their retries, s"
    )
    upload_dir: str = Field(
        "",
        description="folder of uploaded images, which several processes of one machine may share;"
        " empty: a temporary one that ends with the process",
    )
    upload_ttl_seconds: float = Field(
        3600.0, ge=1, le=31_536_000, description="how long the reference to an upload works, s"
    )
    upload_max_bytes: int = Field(
        1 << 30, ge=1, le=1 << 50, description="bytes of uploads of all callers together"
    )
    upload_quota_bytes: int = Field(
        256 << 20, ge=1, le=1 << 50, description="bytes of uploads of one caller"
    )
    upload_quota_count: int = Field(1000, ge=1, le=1_000_000, description="uploads of one caller")
    upload_disk_reserve_bytes: int = Field(
        256 << 20,
        ge=0,
        le=1 << 50,
        description="free disk space at which no more uploads are taken, bytes",
    )
    upload_secret: Annotated[OptionalSecret, AfterValidator(check_secret)] = Field(
        None,
        description="secret that signs the references to uploads, at least 32 bytes; not given: a"
        " random one that is kept in upload_dir",
    )
    idempotency_lease_seconds: float = Field(
        5.0,
        ge=1,
        le=300,
        description="how long a retry waits for an answer that a killed process was making, s;"
        " renewed while work goes on; the same for all services on one database",
    )
    idempotency_max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        le=2**40,
        description="largest content of idempotency_database, bytes: beyond it the oldest answers"
        " are forgotten",
    )

    @field_validator("default_versions")
    @classmethod
    def _one_version_each(cls, pins: tuple[str, ...]) -> tuple[str, ...]:
        models = [pin.partition("=")[0] for pin in pins]
        for pin, model in zip(pins, models, strict=True):
            if not all(pin.partition("=")) or models.count(model) > 1:
                raise ValueError(f"must be model=version, each model once (got {pin!r})")
        return pins

    @field_validator("caller_weights")
    @classmethod
    def _weights_above_zero(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        names = [word.rpartition("=")[0] for word in words]
        for word, name in zip(words, names, strict=True):
            if not is_name(name) or names.count(name) > 1 or not _WEIGHT.fullmatch(word):
                raise ValueError(f"must be name=weight, each name once (got {word!r})")
            if not 0 < float(word.rpartition("=")[2]) <= _MOST_WEIGHT:
                raise ValueError(f"must be above 0 and up to {_MOST_WEIGHT} (got {word!r})")
        return words

    @property
    def weights(self) -> dict[str, float]:
        """Weight by caller, as `caller_weights` says."""
        pairs = (word.rpartition("=") for word in self.caller_weights)
        return {name: float(weight) for name, _, weight in pairs}

    @property
    def pinned(self) -> dict[str, str]:
        """Version by model, as `default_versions` says."""
        return dict(pin.split("=", 1) for pin in self.default_versions)

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
        for name in ("upload_max_bytes", "upload_quota_bytes"):
            if getattr(self, name) < self.max_image_bytes:
                raise ValueError(
                    f"{name}: must be at least max_image_bytes, {self.max_image_bytes}"
                    f" (got {getattr(self, name)})"
                )
        return self
