"""The application: routes, errors in one shape, and what stands before them."""

from typing import Any, cast

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from console_service.context import Console
from console_service.errors import response_of, unforeseen
from console_service.front import ENDLESS, Front
from console_service.mistakes import refused
from console_service.routes import figures, infer, live, log, page, probes, records, sessions
from console_service.schemas import components
from servicekit.distribution import version
from servicekit.errors import SightlineError

_ROUTERS = tuple(
    part.router for part in (probes, log, figures, records, live, infer, sessions, page)
)
_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
}


def application(console: Console) -> ASGIApp:
    """Return the ASGI application of a console.

    Args:
        console: its parts.
    """
    app = FastAPI(
        title="Sightline",
        version=version(),
        docs_url=None,
        redoc_url=None,
        # They would lead from HTTPS, which a proxy may end, to the same host in plain text.
        redirect_slashes=False,
    )
    app.state.console = console
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", page.FreshFiles(directory=page.STATIC), name="static")
    app.mount("/apidocs", page.FreshFiles(directory=page.APIDOCS), name="apidocs")
    app.add_exception_handler(SightlineError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    inner: ASGIApp = app
    if console.settings.cors_origins:
        inner = CORSMiddleware(
            app,
            allow_origins=console.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "idempotency-key", "sightline-timeout", "traceparent"],
            expose_headers=["server-timing", "idempotent-replayed", "retry-after"],
        )
    return Front(inner, console.settings, console.metrics)


async def _known(_request: Request, error: Exception) -> Response:
    found = cast("SightlineError", error)
    return response_of(found, 413 if found.reason == "REQUEST_TOO_LARGE" else None)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return response_of(unforeseen(request.scope, error))


async def _invalid(request: Request, error: Exception) -> Response:
    errors = cast("RequestValidationError", error).errors()
    place = str(errors[0]["loc"][0])
    return response_of(refused(errors, place, _parameters(request)))


async def _http(request: Request, error: Exception) -> Response:
    status = cast("HTTPException", error).status_code
    detail = {
        404: f"there is no {request.url.path[:256]}: /docs lists the routes",
        405: f"{request.url.path[:256]} does not take {request.method}",
    }.get(status, str(cast("HTTPException", error).detail))
    reason = {404: "NO_SUCH_ROUTE", 405: "METHOD_NOT_ALLOWED"}.get(status, "HTTP_ERROR")
    code = _CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT)
    response = response_of(SightlineError(code, reason, detail), status)
    if status == 405:
        allowed = (cast("HTTPException", error).headers or {}).get("Allow", "GET")  # files
        has_head = allowed == "GET" and request.url.path not in ENDLESS
        response.headers["Allow"] = "GET, HEAD" if has_head else allowed
    return response


def _parameters(request: Request) -> list[str]:
    """Return the names of the parameters of a request's route."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    models = [field.field_info.annotation for field in getattr(dependant, "query_params", ())]
    return [name for model in models for name in getattr(model, "model_fields", {})]


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the description of the routes, with the schemas of the contract's messages."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        parts = schema.setdefault("components", {})
        parts.setdefault("schemas", {}).update(components())
        parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"bearer": []}]
        for operation in (one for path in schema["paths"].values() for one in path.values()):
            operation["summary"] = operation["description"].partition(".\n")[0].rstrip(".")
        app.openapi_schema = schema
    return app.openapi_schema
