"""`python -m inference_service`: loads the models, warms them up, and serves."""

import asyncio
import sys

from prometheus_client import CollectorRegistry

from inference_service import open_inference, server
from inference_service.admission import Admission
from inference_service.batch import Workers
from inference_service.device import DeviceCheck
from inference_service.idempotency import StoreError
from inference_service.models.repository import (
    Models,
    RepositoryError,
    Runtime,
    load_all,
    load_model,
)
from inference_service.once import Once
from inference_service.pipeline import Pipeline
from inference_service.settings import InferenceSettings
from inference_service.sqlite_store import SqliteStore
from inference_service.validate import Limits
from servicekit import lifecycle, logs
from servicekit.lifecycle import Readiness, StartError
from servicekit.settings import load
from servicekit.vision import ImageLimits

_PROG = "python -m inference_service"
_STATUS_SECONDS = 0.2  # before the end of the grace: what is left is told so in time


async def serve(settings: InferenceSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        StartError: a model, the repository, a database or an address cannot be used.
        SettingsError: a TLS file cannot be used.
    """
    once = Once(_open_store(settings), settings.idempotency_ttl_seconds)
    workers = Workers(Admission(settings.workers, settings.queue_size))
    device = DeviceCheck()
    pipeline = Pipeline(
        limits=_limits(settings),
        once=once,
        workers=workers,
        device=device,
    )

    async def start(readiness: Readiness) -> None:
        device.on_death = lambda: readiness.set(False)
        pipeline.models = await asyncio.to_thread(_load_models, settings)

    async def drain() -> None:
        await pipeline.drain(max(settings.grace_seconds - _STATUS_SECONDS, 0.0))

    async def stop() -> None:
        await asyncio.to_thread(workers.close)
        await once.close()

    await lifecycle.serve(
        settings,
        [server.service(pipeline), open_inference.service(pipeline)],
        name="inference",
        start=start,
        drain=drain,
        stop=stop,
        registry=CollectorRegistry(),
    )


def _open_store(settings: InferenceSettings) -> SqliteStore:
    try:
        return SqliteStore(settings.idempotency_database)
    except StoreError as error:
        raise StartError(f"idempotency_database: {error}") from error


def _limits(settings: InferenceSettings) -> Limits:
    image = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    return Limits(settings.max_images, image)


def _load_models(settings: InferenceSettings) -> Models:
    runtime = Runtime(settings.providers, settings.intra_op_threads)
    try:
        return load_all(
            settings.model_repository,
            settings.default_model,
            lambda path: load_model(path, runtime),
        )
    except RepositoryError as error:
        raise StartError(str(error)) from error


async def _main() -> None:
    settings = load(InferenceSettings, sys.argv[1:], prog=_PROG)
    logs.configure(settings.log_level, settings.log_format, service="inference")
    await serve(settings)


if __name__ == "__main__":
    sys.exit(lifecycle.run(_main, prog=_PROG))
