"""Errors for a person at a terminal: one sentence and a hint, no traceback."""

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from servicekit import standard_streams
from servicekit.abandoned_threads import end_process
from servicekit.names import readable
from servicekit.standard_streams import OutputError

if TYPE_CHECKING:
    from servicekit.errors import SightlineError

_HINTS = {
    "network": "Is the service running there? `sightline doctor` finds out.",
    "auth": "Check the API key or token (SIGHTLINE_EDGE_API_KEY, ..._FILE) and TLS files.",
    "timeout": "Raise {timeout}, or check the load of the service.",
    "server": "See the log of the service.",
    "validation": "",
}
_HINTS_BY_REASON = {
    "MODEL_NOT_FOUND": "`sightline models ls --inference HOST:PORT` lists its models.",
    "MODEL_VERSION_NOT_FOUND": "`sightline models ls --inference HOST:PORT` lists its models.",
    "IMAGE_FILE_UNREADABLE": "Check the path and its permissions.",
    "IMAGE_TYPE_UNSUPPORTED": "Use a JPEG, PNG, WebP or BMP.",
    "IMAGE_TOO_LARGE": "Shrink the image, or raise max_image_bytes where it was refused.",
    "IMAGE_DIMENSIONS_TOO_LARGE": "Shrink the image (cloud_downscale does so for the cloud), or"
    " raise max_image_pixels where it was refused.",
    "IMAGE_CORRUPT": "Use another copy of the image, or convert it.",
    "SPOOL_LOCKED": "Stop the other process, or set SIGHTLINE_EDGE_SPOOL_DIR to another folder.",
}


_BYTES_PASS = ("utf-8", "surrogateescape")


class CommandError(Exception):
    """A command cannot go on. The message is one sentence for people."""


class UsageError(CommandError):
    """A flag has a value that the command refuses. The message names the flag."""


def run(command: Callable[[], object], *, prog: str) -> NoReturn:
    """Run a command line and end the process.

    The exit code is 2 for a bad flag or setting, 1 for any other error that a person can meet, and
    the command's own otherwise. A stdout whose reader has gone ends the command without a message;
    messages that stderr cannot take are lost.

    Args:
        command: the command line, such as a typer application.
        prog: name of the program, in front of every sentence.
    """
    standard_streams.install()
    for stream in (sys.stdout, sys.stderr):
        # The name of a file or a class must not end the command: in a locale without UTF-8, or with
        # bytes that are none. `surrogateescape`, which some locales set, writes such bytes.
        if isinstance(stream, io.TextIOWrapper) and (stream.encoding, stream.errors) != _BYTES_PASS:
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(command, prog)
    except SystemExit as error:
        end_process(error.code)
    end_process(0)


def _run(command: Callable[[], object], prog: str) -> None:
    """Run a command line. Raises SystemExit: its exit code, after an error's message."""
    try:
        with standard_streams.flushed():
            command()
    except UsageError as error:
        _fail(prog, str(error), 2)
    except CommandError as error:
        _fail(prog, str(error), 1)
    except OutputError as error:
        _fail(prog, error.sentence, 1)
    except UnicodeEncodeError as error:
        _fail(prog, _not_utf8(error), 1)
    except OSError as error:
        _fail(prog, _of_the_system(error), 1)
    except Exception as error:
        _fail_with(prog, error)
        raise


def _fail_with(prog: str, error: Exception) -> None:
    """End the process with the message of a setting's or a call's error; return for any other."""
    import grpc  # with the settings' packages, most of the time that a command takes to start

    from servicekit.errors import SightlineError, from_rpc_error
    from servicekit.settings import SettingsError

    if isinstance(error, SettingsError):
        _fail(prog, str(error), 2)
    if isinstance(error, grpc.RpcError):
        error = from_rpc_error(error)
    if isinstance(error, SightlineError):
        _fail(prog, sentence(error), 1)


def sentence(error: "SightlineError", *, timeout: str = "--timeout") -> str:
    """Return the message of an error for a person, with a hint if there is one.

    Args:
        error: says what failed.
        timeout: the flag that gives the command more time.
    """
    hint = _HINTS_BY_REASON.get(error.reason, _HINTS[error.category])
    return f"{error} {hint.replace('{timeout}', timeout)}".rstrip()


def _of_the_system(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error} (check that it exists, and its permissions)"


def _not_utf8(error: UnicodeEncodeError) -> str:
    found = error.object[error.start : error.end]
    return f"an argument or the name of a file must be UTF-8 (got {found!r} in it)"


def _fail(prog: str, sentence: str, code: int) -> NoReturn:
    if sentence:
        sys.stderr.write(readable(f"{prog}: {sentence}\n"))
    sys.exit(code)
