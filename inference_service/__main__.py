"""`python -m inference_service`: loads the models, warms them up, and serves."""

import asyncio
import logging
import signal
import sys
import warnings
from collections.abc import Callable

from PIL import _imaging as pillow
from prometheus_client import CollectorRegistry

from inference_service import open_inference, server
from inference_service.device import DeviceCheck
from inference_service.idempotency.once import Once
from inference_service.idempotency.sqlite_store import SqliteStore
from inference_service.idempotency.store import StoreError
from inference_service.models.loader import RepositoryError, Runtime, load_model
from inference_service.models.repository import Models, Repository
from inference_service.models.watch import Watch
from inference_service.pipeline import Pipeline
from inference_service.serving.admission import Admission
from inference_service.serving.pixel_room import PixelRoom
from inference_service.serving.workers import Workers
from inference_service.settings import InferenceSettings
from inference_service.telemetry import Telemetry
from inference_service.uploads.errors import StoreError as UploadError
from inference_service.uploads.index import StoreLimits
from inference_service.uploads.receive import WRITTEN_AT_ONCE, Uploads
from inference_service.uploads.reference import Signer
from inference_service.uploads.store import UploadStore
from inference_service.validate import Limits
from servicekit import lifecycle
from servicekit.calls.rooms import bounds_of
from servicekit.errors import SightlineError
from servicekit.lifecycle import Readiness, StartError
from servicekit.settings import load
from servicekit.telemetry import logs
from vision import ImageLimits, SessionOptions

logger = logging.getLogger(__name__)

BYTES_PER_PIXEL = 3
"""Of a picture that is decoded."""
_PROG = "python -m inference_service"
# A worker needs Python's interpreter for moments between long calls that do without it, and waits
# for it while the event loop works. At Python's own 5 ms two workers of a small model stood still
# for a fifth of their time.
_SWITCH_SECONDS = 0.0001
# glibc gives blocks above 32 MiB back to the system as soon as they are freed. Of Pillow's own, of
# 16 MiB, it keeps a hundred MiB for each thread that has decoded a large picture.
_PIXEL_BLOCK_BYTES = 64 * 1024 * 1024
_STATUS_SECONDS = 0.2  # before the end of the grace: what is left is told so in time


async def serve(settings: InferenceSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        StartError: a model, the repository, a database or an address cannot be used.
        SettingsError: a TLS file cannot be used.
    """
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    once = Once(
        _open_store(settings),
        settings.idempotency_ttl_seconds,
        lease_seconds=settings.idempotency_lease_seconds,
        on_event=telemetry.idempotency,
    )
    telemetry.idempotency_table(lambda: once.size.rows, lambda: once.size.bytes)
    admission = Admission(settings.workers, settings.queue_size)
    telemetry.queue(lambda: admission.depth, lambda: admission.running)
    workers = Workers(admission, telemetry)
    device = DeviceCheck()
    limits = _limits(settings)
    uploads = _open_uploads(settings, limits.image)
    pipeline = Pipeline(
        limits=limits,
        once=once,
        workers=workers,
        device=device,
        telemetry=telemetry,
        fetch=uploads.fetch,
        pixels=PixelRoom(settings.bytes_in_flight),
        weights=settings.weights,
    )

    telemetry.models(lambda: [(m.name, m.version, m.network.provider) for m in pipeline.models.all])

    def publish(models: Models) -> None:
        pipeline.models = models

    repository = _repository(settings, publish, telemetry.load_failed)
    watch = Watch(repository, settings.repository_poll_seconds)

    async def start(readiness: Readiness) -> None:
        device.on_death = lambda: readiness.set(False)
        try:
            await asyncio.to_thread(watch.start)
        except RepositoryError as error:
            raise StartError(str(error)) from error
        uploads.start()
        if sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, watch.look_now)

    async def drain() -> None:
        await pipeline.drain(max(settings.grace_seconds - _STATUS_SECONDS, 0.0))

    async def stop() -> None:
        await asyncio.to_thread(watch.close)
        await asyncio.to_thread(workers.close)
        await asyncio.to_thread(pipeline.close)
        await uploads.close()
        await once.close()

    await lifecycle.serve(
        settings,
        [server.service(pipeline, uploads), open_inference.service(pipeline)],
        name="inference",
        start=start,
        drain=drain,
        stop=stop,
        registry=registry,
        bounds=bounds_of(settings, kept=WRITTEN_AT_ONCE),
    )


def _open_store(settings: InferenceSettings) -> SqliteStore:
    try:
        return SqliteStore(settings.idempotency_database, settings.idempotency_max_bytes)
    except StoreError as error:
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
    except (SightlineError, UploadError) as error:
        raise StartError(f"upload_dir: {error}") from error
    return Uploads(store, Signer(key), image, settings.upload_ttl_seconds)


def _limits(settings: InferenceSettings) -> Limits:
    # The pixels of one picture must have room, or nobody could ever be answered for it.
    pixels = min(settings.max_image_pixels, settings.bytes_in_flight // BYTES_PER_PIXEL)
    if pixels < settings.max_image_pixels:
        logger.warning(
            "max_bytes_in_flight has room for pictures of %d pixels: larger ones are refused,"
            " though max_image_pixels is %d",
            pixels,
            settings.max_image_pixels,
        )
    image = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=pixels)
    return Limits(settings.max_images, image)


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


async def _main() -> None:
    settings = load(InferenceSettings, sys.argv[1:], prog=_PROG)
    logs.configure(settings.log_level, settings.log_format, service="inference")
    # Pillow warns of damage that costs nothing. Python keeps each text that it has shown, for good,
    # and the numbers in them are the sender's: it would grow with every bad picture.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.setswitchinterval(_SWITCH_SECONDS)
    pillow.set_block_size(_PIXEL_BLOCK_BYTES)
    await serve(settings)


if __name__ == "__main__":
    sys.exit(lifecycle.run(_main, prog=_PROG))
