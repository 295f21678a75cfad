"""Settings of an edge node; `servicekit.settings` says where they come from."""

import dataclasses
import socket
from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

from edge.cloud.types import UPLOAD_ABOVE_BYTES
from edge.decide.policy import Cascade, Policy
from edge.options import (
    BatchBytes,
    BatchSize,
    BatchTimeoutSeconds,
    Compression,
    DiskReserveBytes,
    LogOptions,
    MemoryBytes,
    MemoryPredictions,
    OnFull,
    SpoolAgeSeconds,
    SpoolBytes,
    StreamSize,
)
from servicekit.settings import (
    Address,
    ClientTlsSettings,
    OptionalPath,
    OptionalTcpAddress,
    Words,
)


class EdgeSettings(ClientTlsSettings):
    """What an edge node can be told.

    Example:
        >>> from sightline import EdgeNode, EdgeSettings
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     device_id="gate-1",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     answer = node.process("photo.jpg")
        >>> answer.model_name
        'model'
    """

    part: ClassVar[str] = "edge"

    # Logging: memory -> spool -> ingest service. Defaults and bounds are those of `LogOptions`.
    ingest_target: Address = Field(
        "127.0.0.1:50051", description="address of the ingest service: host:port or unix:path"
    )
    device_id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=256,
        description="name of this device, unique in the fleet; not given: the host's name",
    )
    spool_dir: OptionalPath = Field(
        None,
        description="folder of the spool; not given: sightline/<device_id> in the state folder",
    )
    api_key: SecretStr | None = Field(
        None, description="API key or JWT for both services; not given: none is sent"
    )
    api_key_file: OptionalPath = Field(
        None,
        description="file that holds the API key or JWT, read anew for every call, so that it can"
        " be replaced; in place of api_key",
    )
    on_full: OnFull = Field("drop_oldest", description="what log() does when memory is full")
    memory_predictions: MemoryPredictions = Field(
        LogOptions.memory_predictions,
        description="predictions that may wait in memory for the spool",
    )
    memory_bytes: MemoryBytes = Field(
        LogOptions.memory_bytes,
        description="predictions that may wait in memory for the spool, bytes on the wire",
    )
    spool_bytes: SpoolBytes = Field(
        LogOptions.spool_bytes,
        description="size at which the spool gives up its oldest, bytes",
    )
    spool_age_seconds: SpoolAgeSeconds = Field(
        LogOptions.spool_age_seconds,
        description="age at which a spooled prediction is given up, s; 0: never",
    )
    disk_reserve_bytes: DiskReserveBytes = Field(
        LogOptions.disk_reserve_bytes,
        description="free disk space at which the spool stops growing, bytes",
    )
    batch_size: BatchSize = Field(
        LogOptions.batch_size,
        description="predictions in one message to the ingest service at most",
    )
    batch_bytes: BatchBytes = Field(
        LogOptions.batch_bytes,
        description="bytes of one message at most; one prediction is sent whatever its size",
    )
    batch_timeout_seconds: BatchTimeoutSeconds = Field(
        LogOptions.batch_timeout_seconds,
        description="how long a spooled prediction waits for others at most, s",
    )
    stream_size: StreamSize = Field(
        LogOptions.stream_size,
        description="predictions in one stream, which is answered once",
    )
    compression: Compression = Field(
        LogOptions.compression,
        description="of messages to the ingest service: none, or gzip, which spares the network"
        " and costs the device's CPU",
    )

    def log_options(self) -> LogOptions:
        """Return the part that tunes a logger."""
        names = (one.name for one in dataclasses.fields(LogOptions))
        return LogOptions(**{name: getattr(self, name) for name in names})

    # Answering: the device's model and the inference service.
    mode: Literal["auto", "device", "cloud", "cascade", "hedged"] = Field(
        default="auto",
        description="who answers: auto (the device, then the cloud), device, cloud, cascade (the"
        " cloud, too, where the device is unsure) or hedged (the cloud, too, where the device is"
        " slow)",
    )
    inference_target: Address = Field(
        default="127.0.0.1:50052",
        description="address of the inference service: host:port or unix:path",
    )
    timeout_seconds: float = Field(
        default=8.0,
        gt=0,
        le=3600,
        description="budget of one image, device and cloud together, s",
    )
    cloud_reserve_seconds: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="time that must be left for the cloud to be asked, s",
    )
    cascade_low: float = Field(
        default=Cascade.low,
        ge=0,
        le=1,
        description="confidence from which on the device is unsure, in mode cascade",
    )
    cascade_high: float = Field(
        default=Cascade.high,
        ge=0,
        le=1,
        description="confidence up to which the device is unsure, in mode cascade",
    )
    cascade_any: bool = Field(
        default=Cascade.any,
        description="whether one detection in the band is enough to ask the cloud; else the most"
        " confident one must be in it",
    )
    cascade_empty: bool = Field(
        default=Cascade.empty,
        description="whether the cloud is asked about images in which the device finds nothing",
    )
    breaker_failures: int = Field(
        default=Policy.breaker_failures,
        ge=1,
        le=1000,
        description="requests in a row that the cloud fails until it is left alone",
    )
    breaker_seconds: float = Field(
        default=Policy.breaker_seconds,
        gt=0,
        le=3600,
        description="how long it is left alone before one request tries again, s",
    )
    retry_tokens: int = Field(
        default=Policy.retry_tokens,
        ge=1,
        le=1000,
        description="tokens that failed tries at the cloud use up; with half of them left or less,"
        " nothing is retried",
    )
    retry_token_ratio: float = Field(
        default=Policy.retry_token_ratio,
        gt=0,
        le=1,
        description="what an answer of the cloud gives back of a token",
    )
    device_model: OptionalPath = Field(
        default=None,
        description="model file on the device; not given: it has none, the cloud answers",
    )
    device_model_name: str = Field(
        default="",
        max_length=256,
        description="name of device_model in the log; empty: its file's name",
    )
    device_model_version: str = Field(
        default="", max_length=256, description="version of device_model; empty: from its SHA-256"
    )
    detector: Literal["onnx", "ultralytics"] = Field(
        default="onnx", description="what runs device_model"
    )
    device_tracker: Literal["", "bytetrack", "botsort"] = Field(
        default="",
        description="tracker that gives objects an identity across frames, of detector ultralytics;"
        " it needs one source per node; empty: none",
    )
    device_process: bool = Field(
        default=False,
        description="run device_model in a process of its own, so that a crash or a hang of its"
        " runtime ends that process and not the node",
    )
    device_hang_seconds: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="time after which a run of device_model in its own process is given up and the"
        " process is killed, s",
    )
    device_providers: Words = Field(
        default=("CPUExecutionProvider",),
        min_length=1,
        description="execution providers of detector onnx, first choice first, comma-separated",
    )
    cloud_model: str = Field(
        default="", description="model that the inference service should use; empty: its default"
    )
    cloud_model_version: str = Field(
        default="", description="version of cloud_model; empty: its default version"
    )
    cloud_labels: Literal["same", "any"] = Field(
        default="same",
        description="labels that the cloud's model may have in the modes cascade and hedged: same"
        " (as the device's model, after cloud_label_map) or any",
    )
    cloud_label_map: Words = Field(
        default=(),
        description="classes that the cloud calls otherwise than the device, as cloud=device,"
        " comma-separated",
    )
    upload_above_bytes: int = Field(
        default=UPLOAD_ABOVE_BYTES,
        ge=0,
        le=1 << 30,
        description="size from which on an encoded image is uploaded to the cloud once, and"
        " referred to in each try, bytes",
    )
    cloud_downscale: bool = Field(
        default=False,
        description="whether images are shrunk to the input of the cloud's model before they leave",
    )
    confidence_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="least confidence of a detection; not given: each model's own",
    )
    iou_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="overlap at which one box goes; not given: each model's own",
    )
    max_detections: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="detections per image; not given: each model's own",
    )
    defect_classes: Words = Field(
        default=(),
        description="classes that are defects, comma-separated; empty: no verdict is logged",
    )

    metrics_listen: OptionalTcpAddress = Field(
        default="",
        description="address of Prometheus metrics over HTTP, host:port; empty: off",
    )

    @property
    def label_map(self) -> dict[str, str]:
        """The device's name for classes that the cloud calls otherwise."""
        return dict(word.split("=", 1) for word in self.cloud_label_map)

    @model_validator(mode="after")
    def _mappable(self) -> Self:
        for word in self.cloud_label_map:
            cloud, _, device = word.partition("=")
            if not cloud or not device:
                raise ValueError(f"cloud_label_map: must be words like car=vehicle (got {word!r})")
        if len(self.label_map) < len(self.cloud_label_map):
            raise ValueError("cloud_label_map: must name each class of the cloud once")
        return self

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("api_key_file: must not be given with api_key")
        return self

    @model_validator(mode="after")
    def _trackable(self) -> Self:
        if self.device_tracker and self.detector != "ultralytics":
            raise ValueError(
                f"device_tracker: needs detector ultralytics, detector is {self.detector}"
            )
        return self

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if self.mode == "device" and self.device_model is None:
            raise ValueError("device_model: must be given in mode device")
        if self.cascade_low > self.cascade_high:
            raise ValueError(
                f"cascade_low: must be at most cascade_high ({self.cascade_high:g}) "
                f"(got {self.cascade_low:g})"
            )
        if self.mode != "device" and self.cloud_reserve_seconds >= self.timeout_seconds:
            raise ValueError(
                f"cloud_reserve_seconds: must be below timeout_seconds ({self.timeout_seconds:g}) "
                f"in mode {self.mode} (got {self.cloud_reserve_seconds:g})"
            )
        return self
