"""Settings of the inference service."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from servicekit.auth.caller import is_name
from servicekit.media_kinds import MAX_SERVICE_BYTES, MAX_SERVICE_PIXELS
from servicekit.resources import cpus
from servicekit.server_settings import ServerSettings, check_secret
from servicekit.settings import BASIC, Address, OptionalPath, OptionalSecret, Words

_WEIGHT = re.compile(r".+=\d{1,4}(\.\d{1,6})?", re.ASCII | re.DOTALL)
_MAX_WEIGHT = 1000
_MESSAGE_MARGIN = 64 * 1024  # what a message contains besides its image


class InferenceSettings(ServerSettings):
    """Settings of the inference service, from flags, environment and file.

    Example: sightline serve inference --model-repository models/repository
    """

    part: ClassVar[str] = "inference"

    listen: Address = Field(
        "127.0.0.1:50052",
        description="address to serve gRPC on: host:port, [IPv6]:port or unix:path; port 0: any",
        json_schema_extra=BASIC,
    )
    # gRPC copies a message on the event loop, about 2.4 ms per MB, while other calls wait.
    max_message_bytes: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        le=2**31 - 1,
        description="largest message in either direction, bytes; more than max_image_bytes",
    )
    model_repository: Path = Field(
        Path("models/repository"),
        description="folder of <name>/<version>/model.onnx",
        json_schema_extra=BASIC,
    )
    default_model: str = Field(
        "",
        description="model for requests that name none; empty: the only one of the repository",
        json_schema_extra=BASIC,
    )
    default_versions: Words = Field(
        (),
        description="versions for requests that name none, comma-separated, e.g. plates=2;"
        " not given for a model: its highest version that can be loaded",
    )
    repository_poll_seconds: float = Field(
        5.0,
        ge=0,
        le=86_400,
        description="interval at which model_repository is polled, s; a change is loaded once two"
        " polls see the same state; 0: only on SIGHUP, of a service without a terminal",
    )
    providers: Words = Field(
        ("CPUExecutionProvider",),
        min_length=1,
        description="ONNX Runtime's execution providers, comma-separated, first choice first, e.g."
        " CUDAExecutionProvider,CPUExecutionProvider; a missing one prevents the start",
        json_schema_extra=BASIC,
    )
    workers: int = Field(
        default_factory=cpus,
        ge=1,
        le=256,
        description="number of images processed in parallel; not given: one per CPU that the"
        " process may use",
        json_schema_extra=BASIC,
    )
    intra_op_threads: int = Field(1, ge=1, le=256, description="CPU threads of one run of a model")
    device_id: int = Field(0, ge=0, le=255, description="number of the GPU that runs the models")
    gpu_memory_bytes: int | None = Field(
        None,
        ge=1,
        le=1 << 50,
        description="limit on the GPU memory of each model, bytes; not given: no limit",
    )
    engine_cache: OptionalPath = Field(
        None,
        description="folder where TensorRT stores the engines that it builds, in a subfolder for"
        " each model; empty: none",
    )
    tensorrt_fp16: bool = Field(
        False, description="allow TensorRT to compute in half precision, which changes results"
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="largest number of images in one run, for models that accept any number; 1: no"
        " batches; not given: 8 on a GPU, 1 on CPUs",
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
        description="largest number of images that wait for a worker, shared between callers; a"
        " caller that had less than its share may add a request, up to twice as many in total",
    )
    caller_weights: Words = Field(
        (),
        description="weights of callers by name, comma-separated, e.g. gate-1=2: under load, twice"
        " the worker time of a caller of weight 1; above 0, at most 1000; not given: 1",
    )
    max_images: int = Field(
        16, ge=1, le=1024, description="largest number of images in one request"
    )
    max_image_bytes: int = Field(
        MAX_SERVICE_BYTES, ge=1, le=2**31 - 1, description="largest encoded image, bytes"
    )
    max_image_pixels: int = Field(
        MAX_SERVICE_PIXELS,
        ge=1,
        le=2**31 - 1,
        description="largest image, width times height, pixels",
    )
    max_response_bytes: int = Field(
        4 * 1024 * 1024,
        ge=1024 * 1024,
        le=64 * 1024 * 1024,
        description="largest response to one request, bytes; gRPC clients accept 4 MiB by default",
    )
    idempotency_database: str = Field(
        "",
        description="SQLite file that stores responses for retries; empty: a temporary file that is"
        " removed when the process ends",
    )
    idempotency_ttl_seconds: float = Field(
        86_400.0, gt=0, le=31_536_000, description="how long responses are stored for retries, s"
    )
    upload_dir: str = Field(
        "",
        description="folder of uploaded images, which several processes of one machine may share;"
        " empty: a temporary one that is removed when the process ends",
    )
    upload_ttl_seconds: float = Field(
        3600.0, ge=1, le=31_536_000, description="how long the reference to an upload is valid, s"
    )
    upload_max_bytes: int = Field(
        1 << 30, ge=1, le=1 << 50, description="limit on the uploads of all callers together, bytes"
    )
    upload_quota_bytes: int = Field(
        256 << 20, ge=1, le=1 << 50, description="limit on the uploads of one caller, bytes"
    )
    upload_quota_count: int = Field(
        1000, ge=1, le=1_000_000, description="largest number of uploads of one caller"
    )
    upload_disk_reserve_bytes: int = Field(
        256 << 20,
        ge=0,
        le=1 << 50,
        description="free disk space below which uploads are refused, bytes",
    )
    upload_secret: Annotated[OptionalSecret, AfterValidator(check_secret)] = Field(
        None,
        description="secret that signs the references to uploads, at least 32 bytes; not given: a"
        " random one that is stored in upload_dir",
    )
    idempotency_lease_seconds: float = Field(
        5.0,
        ge=1,
        le=300,
        description="lease of a call in progress, s: a retry waits as long for a process that was"
        " killed; renewed while work goes on; must be equal for all services on one database",
    )
    idempotency_max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        le=2**40,
        description="limit on the content of idempotency_database, bytes; beyond it the oldest"
        " responses are deleted",
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
            if not 0 < float(word.rpartition("=")[2]) <= _MAX_WEIGHT:
                raise ValueError(f"must be above 0 and up to {_MAX_WEIGHT} (got {word!r})")
        return words

    @property
    def weights(self) -> dict[str, float]:
        """Weight by caller name, from `caller_weights`."""
        pairs = (word.rpartition("=") for word in self.caller_weights)
        return {name: float(weight) for name, _, weight in pairs}

    @property
    def pinned(self) -> dict[str, str]:
        """Version by model name, from `default_versions`."""
        return dict(pin.split("=", 1) for pin in self.default_versions)

    @model_validator(mode="after")
    def _check_one_request_fits(self) -> Self:
        if self.queue_size < self.max_images:
            raise ValueError(
                f"queue_size: must be at least max_images, {self.max_images}"
                f" (got {self.queue_size})"
            )
        minimum = self.max_image_bytes + _MESSAGE_MARGIN
        if self.max_message_bytes < minimum:
            raise ValueError(
                f"max_message_bytes: must be at least max_image_bytes plus 64 KiB, {minimum}"
                f" (got {self.max_message_bytes})"
            )
        for name in ("upload_max_bytes", "upload_quota_bytes"):
            if getattr(self, name) < self.max_image_bytes:
                raise ValueError(
                    f"{name}: must be at least max_image_bytes, {self.max_image_bytes}"
                    f" (got {getattr(self, name)})"
                )
        return self
