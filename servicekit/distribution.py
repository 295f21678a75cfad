"""The installed distribution: its name, its version, and what to type for a missing extra."""

from functools import cache
from importlib import metadata

DISTRIBUTION = "sightline-vision"
_STRANGER = "sightline"
"""Distribution of somebody else, whose import package has the name of ours."""
_OURS = "The wire between edge cameras and the cloud"


@cache
def version() -> str:
    """Return the version that is installed; `unknown` in a checkout that is not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def install_hint(extra: str) -> str:
    """Return the command that installs an extra, for an error about a missing package.

    Example:
        >>> install_hint("onnx")
        "pip install 'sightline-vision[onnx]', or in a checkout: pip install '.[onnx]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]', or in a checkout: pip install '.[{extra}]'"


def stranger() -> str | None:
    """Return a warning if somebody else's package `sightline` is installed; None if it is not."""
    try:
        package = metadata.metadata(_STRANGER)
    except metadata.PackageNotFoundError:
        return None
    if package["Summary"].startswith(_OURS):  # a checkout that was installed under its first name
        return None
    return (
        f"the package sightline {package['Version']}, which is installed here, is not ours and has "
        f"the same folder: pip uninstall sightline, then install {DISTRIBUTION} again"
    )
