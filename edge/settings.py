"""The settings of an edge node; `servicekit.settings` reads them."""

import dataclasses
import socket
from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

from edge.cloud.messages import check_context
from edge.cloud.types import UPLOAD_ABOVE_BYTES
from edge.decide.policy import Cascade, Policy
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
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
    PolygonTolerance,
    SpoolAgeSeconds,
    SpoolBytes,
    StreamSize,
)
from servicekit.contract_bounds import (
    MAX_DETECTIONS,
    MAX_DEVICE_ID_BYTES,
    MAX_MODEL_NAME_BYTES,
)
from servicekit.errors import SightlineError
from servicekit.mask_formats import MaskFormat
from servicekit.settings import (
    BASIC,
    Address,
    ClientTlsSettings,
    OptionalPath,
    OptionalTcpAddress,
    Words,
)


class EdgeSettings(ClientTlsSettings):
    """The settings of an edge node.

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
        "127.0.0.1:50051",
        description="address of the ingest service: host:port or unix:path",
        json_schema_extra=BASIC,
    )
    device_id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=MAX_DEVICE_ID_BYTES,
        description="name of this device, unique in the fleet; default: the host's name",
        json_schema_extra=BASIC,
    )
    spool_dir: OptionalPath = Field(
        None,
        description="folder of the spool; default: sightline/<device_id> in the state folder",
        json_schema_extra=BASIC,
    )
    api_key: SecretStr | None = Field(
        None, description="API key or JWT for both services; default: none"
    )
    api_key_file: OptionalPath = Field(
        None,
        description="file with the API key or JWT, instead of api_key; it is read for every call,"
        " so it can be replaced at any time",
        json_schema_extra=BASIC,
    )
    on_full: OnFull = Field("drop_oldest", description="what log() does when memory is full")
    memory_predictions: MemoryPredictions = Field(
        LogOptions.memory_predictions,
        description="maximum number of predictions in memory that are not spooled yet",
    )
    memory_bytes: MemoryBytes = Field(
        LogOptions.memory_bytes,
        description="maximum size of the predictions in memory that are not spooled yet, encoded"
        " bytes",
    )
    spool_bytes: SpoolBytes = Field(
        LogOptions.spool_bytes,
        description="size at which the spool drops its oldest predictions, bytes",
    )
    spool_age_seconds: SpoolAgeSeconds = Field(
        LogOptions.spool_age_seconds,
        description="age at which a spooled prediction is dropped, s; 0: never",
    )
    disk_reserve_bytes: DiskReserveBytes = Field(
        LogOptions.disk_reserve_bytes,
        description="free disk space at which the spool stops growing, bytes",
    )
    batch_size: BatchSize = Field(
        LogOptions.batch_size,
        description="maximum number of predictions in one message to the ingest service",
    )
    batch_bytes: BatchBytes = Field(
        LogOptions.batch_bytes,
        description="maximum size of one message, bytes; a larger prediction is sent alone",
    )
    batch_timeout_seconds: BatchTimeoutSeconds = Field(
        LogOptions.batch_timeout_seconds,
        description="maximum time that a spooled prediction waits for others, s",
    )
    stream_size: StreamSize = Field(
        LogOptions.stream_size,
        description="maximum number of predictions in one stream, which gets one response",
    )
    compression: Compression = Field(
        LogOptions.compression,
        description="compression of messages to the ingest service: none, or gzip, which saves"
        " bandwidth and costs CPU time on the device",
    )
    mask_format: MaskFormat = Field(
        LogOptions.mask_format,
        description="format of the masks of models that segment: polygon, rle (COCO's run lengths,"
        " which keep holes) or off",
    )
    polygon_tolerance: PolygonTolerance = Field(
        LogOptions.polygon_tolerance,
        description="largest distance between a polygon and the outline of its mask, pixels",
    )

    def log_options(self) -> LogOptions:
        """Return the options of a logger."""
        names = (field.name for field in dataclasses.fields(LogOptions))
        return LogOptions(**{name: getattr(self, name) for name in names})

    # Answering: the device's model and the inference service.
    mode: Literal["auto", "device", "cloud", "cascade", "hedged"] = Field(
        default="auto",
        description="mode of inference: auto (the device, the cloud if it fails), device, cloud,"
        " cascade (also the cloud if the device is unsure) or hedged (also the cloud if the device"
        " is slow)",
        json_schema_extra=BASIC,
    )
    inference_target: Address = Field(
        default="127.0.0.1:50052",
        description="address of the inference service: host:port or unix:path",
        json_schema_extra=BASIC,
    )
    timeout_seconds: float = Field(
        default=8.0,
        gt=0,
        le=3600,
        description="time budget of one image, for the device and the cloud together, s",
        json_schema_extra=BASIC,
    )
    cloud_reserve_seconds: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="part of the time budget that is reserved for the cloud, s",
    )
    cascade_low: float = Field(
        default=Cascade.low,
        ge=0,
        le=1,
        description="lower end of the confidences at which the device is unsure, in mode cascade",
    )
    cascade_high: float = Field(
        default=Cascade.high,
        ge=0,
        le=1,
        description="upper end of the confidences at which the device is unsure, in mode cascade",
    )
    cascade_any: bool = Field(
        default=Cascade.any,
        description="ask the cloud if any detection is unsure; else only if the most confident one"
        " is",
    )
    cascade_empty: bool = Field(
        default=Cascade.empty,
        description="ask the cloud about images in which the device detects nothing",
    )
    breaker_failures: int = Field(
        default=Policy.breaker_failures,
        ge=1,
        le=1000,
        description="consecutive failures of the cloud after which its circuit breaker opens",
    )
    breaker_seconds: float = Field(
        default=Policy.breaker_seconds,
        gt=0,
        le=3600,
        description="time after which an open circuit breaker permits one probe request, s",
    )
    retry_tokens: int = Field(
        default=Policy.retry_tokens,
        ge=1,
        le=1000,
        description="number of retry tokens; a failed try at the cloud removes one, and nothing is"
        " retried while half of them or fewer are left",
    )
    retry_token_ratio: float = Field(
        default=Policy.retry_token_ratio,
        gt=0,
        le=1,
        description="fraction of a retry token that an answer of the cloud adds",
    )
    device_model: OptionalPath = Field(
        default=None,
        description="model file on the device; default: none, the cloud answers",
        json_schema_extra=BASIC,
    )
    device_model_name: str = Field(
        default="",
        max_length=MAX_MODEL_NAME_BYTES,
        description="name of device_model in the log; empty: the name of its file",
    )
    device_model_version: str = Field(
        default="",
        max_length=MAX_MODEL_NAME_BYTES,
        description="version of device_model in the log; empty: derived from the SHA-256 of the"
        " file and its external data",
    )
    detector: Literal["onnx", "ultralytics"] = Field(
        default="onnx", description="runtime of device_model", json_schema_extra=BASIC
    )
    device_tracker: Literal["", "bytetrack", "botsort"] = Field(
        default="",
        description="tracker that identifies objects across frames, for detector ultralytics; it"
        " needs one source per node; empty: none",
    )
    device_process: bool = Field(
        default=False,
        description="run device_model in a separate process, so that a crash or a hang of its"
        " runtime does not end the node",
    )
    device_hang_seconds: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="duration of one run of device_model after which its process is killed, s",
    )
    device_providers: Words = Field(
        default=("CPUExecutionProvider",),
        min_length=1,
        description="execution providers of detector onnx in order of preference, comma-separated",
    )
    cloud_model: str = Field(
        default="", description="model of the inference service to use; empty: its default"
    )
    cloud_model_version: str = Field(
        default="", description="version of cloud_model; empty: its default version"
    )
    cloud_labels: Literal["same", "any"] = Field(
        default="same",
        description="labels that the cloud's model may have in the modes cascade and hedged: same"
        " (those of the device's model, after cloud_label_map) or any",
    )
    cloud_label_map: Words = Field(
        default=(),
        description="classes of the cloud to rename to classes of the device, as cloud=device,"
        " comma-separated; the device's model must have them, unless cloud_labels is any",
    )
    context: Words = Field(
        default=(),
        description="labels of every image, for the log and for the service's access log and"
        " traces, as key=value, comma-separated, such as plant=3,line=4",
    )
    upload_above_bytes: int = Field(
        default=UPLOAD_ABOVE_BYTES,
        ge=0,
        le=1 << 30,
        description="size above which an encoded image is uploaded to the cloud once and sent as a"
        " reference in each try, bytes",
    )
    cloud_downscale: bool = Field(
        default=False,
        description="downscale images to the input size of the cloud's model before they are sent",
    )
    confidence_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="minimum confidence of a detection; default: that of each model",
        json_schema_extra=BASIC,
    )
    iou_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="overlap (IoU) above which the weaker of two boxes of one class is dropped;"
        " default: that of each model",
    )
    max_detections: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DETECTIONS,
        description="maximum number of detections per image; default: that of each model",
    )
    defect_classes: Words = Field(
        default=(),
        description="classes that are defects, comma-separated; the device's model must have them,"
        " unless cloud_labels is any; empty: log no defect_detected",
        json_schema_extra=BASIC,
    )

    max_image_bytes: int = Field(
        default=DEVICE_LIMITS.max_bytes,
        ge=1,
        le=(1 << 31) - 1,
        description="maximum size of an encoded image that this device reads, bytes; the inference"
        " service has a limit of its own",
    )
    max_image_pixels: int = Field(
        default=DEVICE_LIMITS.max_pixels,
        ge=1,
        le=(1 << 32) - 1,
        description="maximum number of pixels of an image that this device decodes; decoding takes"
        " 7 to 24 bytes of memory per pixel; the inference service has a limit of its own",
    )

    metrics_listen: OptionalTcpAddress = Field(
        default="",
        description="address of Prometheus metrics over HTTP, host:port; empty: off",
    )

    @property
    def image_limits(self) -> DeviceImageLimits:
        """The limits on images that this device reads."""
        return DeviceImageLimits(self.max_image_bytes, self.max_image_pixels)

    @property
    def label_map(self) -> dict[str, str]:
        """The device's names for classes of the cloud, by the cloud's names."""
        return dict(word.split("=", 1) for word in self.cloud_label_map)

    @property
    def context_labels(self) -> dict[str, str]:
        """The labels of `context` by key."""
        return dict(word.split("=", 1) for word in self.context)

    @model_validator(mode="after")
    def _findable(self) -> Self:
        for word in self.context:
            if not word.partition("=")[0] or "=" not in word:
                raise ValueError(f"context: must be words like plant=3 (got {word!r})")
        if len(self.context_labels) < len(self.context):
            raise ValueError("context: must have each key once")
        try:
            check_context(self.context_labels)
        except SightlineError as error:
            (violation,) = error.violations
            raise ValueError(f"{violation.field}: {violation.description}") from error
        return self

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
