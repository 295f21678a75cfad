"""`python -m inference_service`: the entry point of the inference service."""

import sys
import warnings

from PIL import _imaging as pillow
from prometheus_client import CollectorRegistry

from inference_service import open_inference, server
from inference_service.assemble import assemble
from inference_service.settings import InferenceSettings
from inference_service.uploads.receive import WRITTEN_AT_ONCE
from servicekit import lifecycle
from servicekit.about import program
from servicekit.calls.budgets import bounds_of
from servicekit.settings import load, warn_of_mistyped_variables
from servicekit.telemetry import logs

_PROG = program("python -m inference_service")
# A worker needs the interpreter lock briefly between long calls that release it, and waits for it
# while the event loop runs. With Python's default of 5 ms, two workers of a small model were idle
# for a fifth of their time.
_SWITCH_SECONDS = 0.0001
# glibc returns blocks above 32 MiB to the system as soon as they are freed. With Pillow's default
# blocks of 16 MiB, it keeps 100 MiB for each thread that has decoded a large image.
_PIXEL_BLOCK_BYTES = 64 * 1024 * 1024
_STATUS_SECONDS = 0.2  # left at the end of the grace period to send the remaining callers an error


async def serve(settings: InferenceSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartError: a model, the repository, a database or an address is unusable.
        SettingsError: a TLS file is unusable.
    """
    registry = CollectorRegistry()
    parts = assemble(settings, registry)
    await lifecycle.serve(
        settings,
        [server.service(parts.pipeline, parts.uploads), open_inference.service(parts.pipeline)],
        name="inference",
        start=parts.start,
        drain=lambda: parts.drain(max(settings.grace_seconds - _STATUS_SECONDS, 0.0)),
        stop=parts.stop,
        registry=registry,
        bounds=bounds_of(settings, kept=WRITTEN_AT_ONCE),
    )


async def _main() -> None:
    settings = load(InferenceSettings, sys.argv[1:], prog=_PROG)
    logs.configure(settings.log_level, settings.log_format, service="inference")
    warn_of_mistyped_variables(InferenceSettings)
    # Pillow warns about harmless damage. Python stores every distinct warning text permanently, and
    # the texts contain numbers from the image: memory would grow with every bad image.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.setswitchinterval(_SWITCH_SECONDS)
    pillow.set_block_size(_PIXEL_BLOCK_BYTES)
    await serve(settings)


if __name__ == "__main__":
    sys.exit(lifecycle.run(_main, prog=_PROG))
