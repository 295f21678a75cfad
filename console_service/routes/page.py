"""Routes of the page and of the reference of routes, from files of this package."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import grpc
from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from console_service.front import CSP
from servicekit.errors import SightlineError

STATIC = Path(__file__).parents[1] / "static"
APIDOCS = Path(__file__).parents[1] / "apidocs"
router = APIRouter(include_in_schema=False)
_FRESH = {"Cache-Control": "no-cache"}
# RapiDoc writes styles into its elements.
_DOCS_CSP = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"


class FreshFiles(StaticFiles):
    """Files that browsers ask for anew, by their ETag, each time.

    Without this, a browser guesses from a file's age for how long it may keep it, and would mix
    modules of two versions after an upgrade.
    """

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - Starlette's
        """Return the response for a file."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(_FRESH)
        return response


_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


def page_policy(html: str) -> str:
    """Return the content security policy of the page.

    Scripts inside of the page are allowed by their hashes: browsers take an import map from
    nowhere else.
    """
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in _INLINE_SCRIPT.findall(html)
    ]
    sources = " ".join(["'self'", *(f"'sha256-{one}'" for one in hashes)])
    return f"{CSP}; script-src {sources}"


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
    policy = page_policy(path.read_text(encoding="utf-8"))
    return FileResponse(path, headers={**_FRESH, "Content-Security-Policy": policy})


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
