"""The route that asks the inference service for images."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, ValidationError
from sightline.inference.v1.inference_pb2 import Image, InferParameters, MaskFormat, ModelHint
from sightline.inference.v1.inference_service_pb2 import InferRequest, InferResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response

from console_service.answers import answer
from console_service.backend import INFERENCE
from console_service.context import UPLOAD, Calling, Here
from console_service.mistakes import refused
from console_service.query import QueryParameters
from console_service.schemas import answers
from servicekit.errors import invalid

router = APIRouter(tags=["inference"], dependencies=[UPLOAD])
MAX_IMAGES = 64
"""Files of one form; the service takes 16 unless it is set otherwise."""
_FORM = "multipart/form-data"
_BODY = {
    "required": True,
    "content": {
        _FORM: {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
"""A number that the contract can carry; the service says which ones it takes."""


class InferFields(QueryParameters):
    """Fields of the form beside the images, or parameters of the query string."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field("", description="name of the model; empty: the service's default")
    version: str = Field("", description="version of the model; empty: its default")
    confidence_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: Int32 | None = None
    top_k: Int32 | None = None
    mask_format: Literal["off", "polygon", "rle"] | None = None
    polygon_tolerance: float | None = None

    def request(self, images: Sequence[Image]) -> InferRequest:
        """Return the request of the contract."""
        parameters = InferParameters(
            **self.model_dump(exclude={"model", "version", "mask_format"}, exclude_none=True)
        )
        if self.mask_format is not None:
            parameters.mask_format = MaskFormat.Value(f"MASK_FORMAT_{self.mask_format.upper()}")
        request = InferRequest(images=images, parameters=parameters)
        if self.model or self.version:
            request.model.CopyFrom(ModelHint(name=self.model, version=self.version))
        return request


@router.post("/infer", responses=answers(InferResponse), openapi_extra={"requestBody": _BODY})
async def infer(request: Request, here: Here, call: Calling) -> Response:
    """Run a model on images: `curl -F image=@part.jpg`, or an image as the whole body.

    With the header `Idempotency-Key` (a UUIDv4), a repeated request gets the first answer, marked
    by the header `Idempotent-Replayed: true`. The header `Sightline-Timeout` is the deadline, s.
    """
    asked = await _asked(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise invalid("Idempotency-Key", "must be a UUIDv4")
    metadata = [("idempotency-key", key)] if key is not None else []
    found, trailing = await here.backend.ask(
        INFERENCE, here.backend.inference.Infer, asked, call, metadata
    )
    replayed = trailing.get("idempotent-replayed")
    return answer(found, call, headers={"Idempotent-Replayed": replayed} if replayed else None)


async def _asked(request: Request) -> InferRequest:
    """Return the request for the service. Raises SightlineError INVALID_ARGUMENT."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields = _fields(request.query_params.multi_items(), "query")
    if kind != _FORM:
        if kind and kind != "application/octet-stream" and not kind.startswith("image/"):
            raise invalid(
                "Content-Type",
                f"must be {_FORM} with a file `image`, or that of an image, got {kind[:128]!r}",
            )
        return fields.request([Image(data=_not_empty(await request.body()))])
    try:
        form = await request.form(max_files=MAX_IMAGES, max_fields=MAX_IMAGES)
    except HTTPException as error:  # Starlette's for a form that cannot be parsed
        raise invalid("body", f"must be {_FORM}: {error.detail}") from error
    except UnicodeError as error:  # some codecs raise more than Starlette expects
        raise invalid("Content-Type", "must have the charset utf-8, or none") from error
    try:
        files = [(n, v) for n, v in form.multi_items() if isinstance(v, UploadFile)]
        texts = [(n, v) for n, v in form.multi_items() if not isinstance(v, UploadFile)]
        for name, _ in files:
            if name != "image":
                raise invalid(name, "must be `image`, the name of every file: -F image=@part.jpg")
        images = [
            Image(image_id=(file.filename or "")[:256], data=_not_empty(await file.read()))
            for _, file in files
        ]
    finally:
        await form.close()
    if not images:
        raise invalid("image", "must be given as a file: -F image=@part.jpg")
    given = fields.model_dump(exclude_unset=True).items()
    return _fields([*given, *texts], "form").request(images)


def _fields(pairs: Sequence[tuple[str, Any]], place: str) -> InferFields:
    try:
        return InferFields.model_validate(dict(pairs))
    except ValidationError as error:
        raise refused(error.errors(), place, InferFields.model_fields) from None


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise invalid("image", "must not be empty", reason="IMAGE_EMPTY")
    return data
