"""Errors of this package: plain exceptions with a reason that callers turn into their own."""


class ImageError(ValueError):
    """A picture that is refused; the fault is the sender's and repeats for the same bytes.

    Attributes:
        reason: one of ``IMAGE_EMPTY``, ``IMAGE_TOO_LARGE`` (bytes), ``IMAGE_TYPE_UNSUPPORTED``,
            ``IMAGE_DIMENSIONS_TOO_LARGE`` (pixels), ``IMAGE_TOO_COMPLEX`` (segments or scans that
            would cost far more than its size) and ``IMAGE_CORRUPT``.
        message: what is wrong, with the bound that was broken.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ModelError(RuntimeError):
    """A model that cannot be used, or a run of it that failed; no fault of the picture.

    Attributes:
        reason: one of ``MODEL_FILE_MISSING``, ``MODEL_FILE_INVALID``, ``MODEL_METADATA_INVALID``,
            ``MODEL_UNSUPPORTED`` (task, input or output this package cannot handle),
            ``MODEL_PROVIDER_UNAVAILABLE``, ``MODEL_RUN_FAILED`` and ``MODEL_OUTPUT_INVALID``
            (NaN, infinity, scores above 1, a class that the model does not have).
        message: what is wrong, naming the metadata key, tensor or provider.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
