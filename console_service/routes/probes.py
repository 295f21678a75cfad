"""Routes that say whether the console and the services work."""

import orjson
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from console_service.answers import as_json
from console_service.context import Here
from servicekit.distribution import version

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(here: Here) -> Response:
    """Say whether both services can do their work; 503 if one cannot."""
    states = await here.backend.health()
    ready = set(states.values()) == {"SERVING"}
    body = {
        "status": "ready" if ready else "not ready",
        "version": version(),
        **{name: state.lower() for name, state in states.items()},
    }
    response = as_json(orjson.dumps(body))
    response.status_code = 200 if ready else 503
    return response


@router.get("/healthz", include_in_schema=False)
async def live() -> Response:
    """Say that the process works."""
    return PlainTextResponse("live\n", headers={"Cache-Control": "no-store"})


@router.get("/readyz", include_in_schema=False)
async def ready(here: Here) -> Response:
    """Say whether the console takes requests; it does while a service is away, and says so."""
    draining = here.draining.is_set()
    return PlainTextResponse(
        "draining\n" if draining else "ready\n",
        503 if draining else 200,
        {"Cache-Control": "no-store"},
    )
