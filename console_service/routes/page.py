"""Routes of the page and of the reference of routes, from files of this package."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

import grpc
from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from console_service.front import CSP
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
    return FileResponse(path, headers={**_FRESH, "Content-Security-Policy": _page_csp(path)})


@cache
def _page_csp(path: Path) -> str:
    """Return the page's policy, which permits its import map: no file can hold one, only the page.

    Source: CSP level 3, section 8.3, hash sources.
    """
    inline = re.findall(r'<script type="importmap">(.*?)</script>', path.read_text(), re.DOTALL)
    hashes = (hashlib.sha256(text.encode()).digest() for text in inline)
    sources = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
    return f"{CSP}; script-src 'self' {sources}"


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
