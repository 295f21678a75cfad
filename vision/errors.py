"""Exceptions of this package: each has a reason, which callers translate into their own errors."""

import os
from pathlib import Path


class ImageError(ValueError):
    """An invalid image. The same bytes always fail in the same way.

    Attributes:
        reason: one of ``IMAGE_EMPTY``, ``IMAGE_TOO_LARGE`` (bytes), ``IMAGE_TYPE_UNSUPPORTED``,
            ``IMAGE_DIMENSIONS_TOO_LARGE`` (pixels), ``IMAGE_TOO_COMPLEX`` (segments or scans that
            would take far more time than its size suggests) and ``IMAGE_CORRUPT``.
        message: what is wrong, with the limit that was exceeded.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ModelError(RuntimeError):
    """A model that cannot be used, or a failed run that the image did not cause.

    Attributes:
        reason: one of ``MODEL_FILE_MISSING``, ``MODEL_FILE_INVALID``, ``MODEL_METADATA_INVALID``,
            ``MODEL_UNSUPPORTED`` (task, input or output this package cannot handle),
            ``MODEL_PROVIDER_UNAVAILABLE``, ``MODEL_RUN_FAILED`` and ``MODEL_OUTPUT_INVALID``
            (NaN, infinity, scores above 1, an unknown class).
        message: what is wrong, with the metadata key, tensor or provider.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def unreadable(path: Path, error: OSError) -> ModelError:
    """Return the error for a model file, or a file with its weights, that cannot be read."""
    cause = error.strerror or str(error)
    if error.filename not in (None, str(path), path):
        cause = f"{error.filename}: {cause}"
    return ModelError(
        "MODEL_FILE_MISSING",
        f"the model {path} cannot be read: {cause} (check the path and its permissions)",
    )


def check_text(path: Path) -> None:
    """Check that the path of a model is text, as ONNX Runtime and torch need it.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: it has bytes that are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ModelError(
            "MODEL_FILE_INVALID",
            f"the path of a model must be UTF-8, got {shown}: rename it, or make a link to it",
        ) from None
