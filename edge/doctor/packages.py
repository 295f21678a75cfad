"""Checks of the installed packages: those that take each other's place without a word."""

from collections.abc import Callable, Iterator
from importlib import metadata

from edge.doctor.finding import Finding, failed, warning
from servicekit.distribution import DISTRIBUTION, stranger

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def packages(is_installed: Callable[[str], bool] | None = None) -> Iterator[Finding]:
    """Yield a finding for each package that is installed over another.

    Args:
        is_installed: whether a distribution is installed here; None: as the metadata says.
    """
    has = is_installed or _is_installed
    if has("sightline") and (message := stranger()):
        yield failed("packages", message, f"pip uninstall sightline; reinstall {DISTRIBUTION}")
    if all(has(name) for name in _RUNTIMES):
        yield warning(
            "packages",
            "onnxruntime and onnxruntime-gpu are both installed: they have one folder, and which "
            "of them runs depends on the order in which they were installed",
            "pip uninstall onnxruntime onnxruntime-gpu; then install one of them again",
        )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
