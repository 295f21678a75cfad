"""Construction of the inference service from its settings."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from inference_service.device import DeviceCheck
from inference_service.idempotency.single_flight import SingleFlight
from inference_service.idempotency.sqlite_store import SqliteStore
from inference_service.idempotency.store import ClaimStoreError
from inference_service.models.loader import RepositoryError, Runtime, load_model
from inference_service.models.repository import Models, Repository
from inference_service.models.watcher import RepositoryWatcher
from inference_service.pipeline import InferencePipeline
from inference_service.serving.admission import Admission
from inference_service.serving.pixel_budget import PixelBudget
from inference_service.serving.workers import Workers
from inference_service.settings import InferenceSettings
from inference_service.telemetry import Telemetry
from inference_service.uploads.errors import UploadStoreError
from inference_service.uploads.index import StoreLimits
from inference_service.uploads.receive import Uploads
from inference_service.uploads.reference import ReferenceSigner
from inference_service.uploads.store import UploadStore
from inference_service.validate import RequestLimits
from servicekit.errors import SightlineError
from servicekit.lifecycle import Readiness, StartError, ends_with_terminal
from vision import ImageLimits, SessionOptions

logger = logging.getLogger(__name__)

BYTES_PER_PIXEL = 3
"""Bytes per pixel of a decoded image."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one inference service, with their common start and end."""

    pipeline: InferencePipeline
    uploads: Uploads
    single_flight: SingleFlight
    workers: Workers
    device: DeviceCheck
    watcher: RepositoryWatcher

    async def start(self, readiness: Readiness) -> None:
        """Load the models, and watch their repository from then on.

        Raises:
            StartError: a model or the repository is unusable.
        """
        self.device.on_death = lambda: readiness.set(False)
        try:
            await asyncio.to_thread(self.watcher.start)
        except RepositoryError as error:
            raise StartError(str(error)) from error
        self.uploads.start()
        if sys.platform != "win32" and not ends_with_terminal():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.watcher.poll_now)

    async def drain(self, seconds: float) -> None:
        """Wait for the calls in flight, for at most `seconds`."""
        await self.pipeline.drain(seconds)

    async def stop(self) -> None:
        """Stop every part, producers before consumers."""
        await asyncio.to_thread(self.watcher.close)
        await asyncio.to_thread(self.workers.close)
        await asyncio.to_thread(self.pipeline.close)
        await self.uploads.close()
        await self.single_flight.close()


def assemble(settings: InferenceSettings, registry: CollectorRegistry) -> Assembly:
    """Return the service that the settings describe, without models: `start` loads them.

    Args:
        settings: of the service.
        registry: receives its metrics.

    Raises:
        StartError: a database or a folder is unusable.
    """
    telemetry = Telemetry(registry)
    single_flight = SingleFlight(
        _open_store(settings),
        settings.idempotency_ttl_seconds,
        lease_seconds=settings.idempotency_lease_seconds,
        on_event=telemetry.idempotency,
    )
    telemetry.idempotency_table(lambda: single_flight.size.rows, lambda: single_flight.size.bytes)
    admission = Admission(settings.workers, settings.queue_size)
    telemetry.queue(lambda: admission.depth, lambda: admission.running)
    workers = Workers(admission, telemetry)
    device = DeviceCheck()
    limits = _limits(settings)
    uploads = _open_uploads(settings, limits.image)
    pipeline = InferencePipeline(
        limits=limits,
        single_flight=single_flight,
        workers=workers,
        device=device,
        telemetry=telemetry,
        fetch=uploads.fetch,
        pixels=PixelBudget(settings.bytes_in_flight),
        weights=settings.weights,
    )
    telemetry.models(lambda: [(m.name, m.version, m.network.provider) for m in pipeline.models.all])

    def publish(models: Models) -> None:
        pipeline.models = models

    repository = _repository(settings, publish, telemetry.load_failed)
    watcher = RepositoryWatcher(repository, settings.repository_poll_seconds)
    return Assembly(pipeline, uploads, single_flight, workers, device, watcher)


def _open_store(settings: InferenceSettings) -> SqliteStore:
    try:
        return SqliteStore(settings.idempotency_database, settings.idempotency_max_bytes)
    except ClaimStoreError as error:
        raise StartError(f"idempotency_database: {error}") from error


def _open_uploads(settings: InferenceSettings, image: ImageLimits) -> Uploads:
    limits = StoreLimits(
        settings.upload_max_bytes,
        settings.upload_quota_bytes,
        settings.upload_quota_count,
        settings.upload_disk_reserve_bytes,
    )
    secret = settings.upload_secret
    try:
        store = UploadStore(settings.upload_dir, limits)
        key = secret.get_secret_value().encode() if secret else store.key()
    except (SightlineError, UploadStoreError) as error:
        raise StartError(f"upload_dir: {error}") from error
    return Uploads(store, ReferenceSigner(key), image, settings.upload_ttl_seconds)


def _limits(settings: InferenceSettings) -> RequestLimits:
    # The pixels of one image must fit into the memory budget, or it could never be answered.
    pixels = min(settings.max_image_pixels, settings.bytes_in_flight // BYTES_PER_PIXEL)
    if pixels < settings.max_image_pixels:
        logger.warning(
            "max_bytes_in_flight allows images of up to %d pixels: larger ones are refused,"
            " although max_image_pixels is %d",
            pixels,
            settings.max_image_pixels,
        )
    image = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=pixels)
    return RequestLimits(settings.max_images, image, settings.max_response_bytes)


def _repository(
    settings: InferenceSettings,
    publish: Callable[[Models], None],
    on_failure: Callable[[str], None],
) -> Repository:
    session = SessionOptions(
        settings.providers,
        settings.intra_op_threads,
        device_id=settings.device_id,
        gpu_memory_bytes=settings.gpu_memory_bytes,
        engine_cache=settings.engine_cache,
        tensorrt_fp16=settings.tensorrt_fp16,
    )
    runtime = Runtime(session, settings.max_batch_size, settings.batch_wait_seconds)
    return Repository(
        settings.model_repository,
        default=settings.default_model,
        pinned=settings.pinned,
        load=lambda path: load_model(path, runtime),
        publish=publish,
        on_failure=on_failure,
    )
