"""Routes of the page and of the reference of routes, from files of this package."""

from pathlib import Path

import grpc
from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from servicekit.errors import SightlineError

STATIC = Path(__file__).parents[1] / "static"
APIDOCS = Path(__file__).parents[1] / "apidocs"
router = APIRouter(include_in_schema=False)
_FRESH = {"Cache-Control": "no-cache"}
# RapiDoc writes styles into its elements.
_DOCS_CSP = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"


@router.get("/")
async def index() -> Response:
    """Return the page."""
    path = STATIC / "index.html"
    if not path.is_file():
        raise SightlineError(
            grpc.StatusCode.NOT_FOUND,
            "PAGE_MISSING",
            "this installation has no page; /docs lists the routes",
        )
    return FileResponse(path, headers=_FRESH)


@router.get("/docs")
async def docs() -> Response:
    """Return the reference of routes."""
    return FileResponse(
        APIDOCS / "index.html", headers={**_FRESH, "Content-Security-Policy": _DOCS_CSP}
    )


@router.get("/pictures/{sha256}")
async def picture(sha256: str) -> Response:
    """Refuse: pictures are not kept beside the log yet."""
    del sha256
    raise SightlineError(
        grpc.StatusCode.NOT_FOUND,
        "PICTURES_NOT_KEPT",
        "pictures are not kept beside the log: the devices have them",
    )
