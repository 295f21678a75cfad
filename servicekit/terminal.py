"""What a person at a terminal sees of an error: one sentence and a hint, no traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn

import grpc

from servicekit.errors import Category, SightlineError, from_rpc_error
from servicekit.settings import SettingsError

_HINTS = {
    Category.NETWORK: "Is the service running there? `sightline doctor` tells.",
    Category.AUTH: "Check the API key or token (SIGHTLINE_EDGE_API_KEY, ..._FILE) and TLS files.",
    Category.TIMEOUT: "Give it more time with --timeout, or look at the service's load.",
    Category.SERVER: "The service's log says more.",
    Category.VALIDATION: "",
}
_HINTS_BY_REASON = {
    "MODEL_NOT_FOUND": "`sightline models ls --address HOST:PORT` lists what it has.",
    "MODEL_VERSION_NOT_FOUND": "`sightline models ls --address HOST:PORT` lists what it has.",
    "IMAGE_FILE_UNREADABLE": "Check the path, and who may read it.",
    "IMAGE_TYPE_UNSUPPORTED": "Give it a JPEG, PNG, WebP or BMP.",
    "IMAGE_CORRUPT": "Take it anew, or convert it.",
    "SPOOL_LOCKED": "Stop the other one, or set SIGHTLINE_EDGE_SPOOL_DIR to another folder.",
}


class CommandError(Exception):
    """A command cannot go on. The message is one sentence for people."""


def run(command: Callable[[], object], *, prog: str) -> NoReturn:
    """Run a command line and end the process.

    The exit code is 2 for a bad flag or setting, 1 for any other error that a person can meet, and
    the command's own otherwise.

    Args:
        command: the command line, such as a typer application.
        prog: the program's name, in front of every sentence.
    """
    try:
        command()
    except SettingsError as error:
        _fail(prog, str(error), 2)
    except CommandError as error:
        _fail(prog, str(error), 1)
    except SightlineError as error:
        _fail(prog, sentence(error), 1)
    except grpc.RpcError as error:
        _fail(prog, sentence(from_rpc_error(error)), 1)
    except OSError as error:
        _fail(prog, _of_the_system(error), 1)
    sys.exit(0)


def sentence(error: SightlineError) -> str:
    """Return an error as a person reads it: what is wrong, and a hint where there is one."""
    hint = _HINTS_BY_REASON.get(error.reason, _HINTS[error.category])
    return f"{error} {hint}".rstrip()


def _of_the_system(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error} (check that it is there, and who may use it)"


def _fail(prog: str, sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"{prog}: {sentence}\n")
    sys.exit(code)
