"""The `sightline` command as a process: what it prints, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.default_ports import NOBODY

ROOT = Path(__file__).parents[3]
REPOSITORY = ROOT / "models/repository"
SIGHTLINE = [sys.executable, "-c", "from sightline.cli.app import main; main()"]
Done = subprocess.CompletedProcess[str]


def environment(**settings: object) -> dict[str, str]:
    """Returns an environment with these settings of a node, and no others.

    Without a target nothing is reached: at the default ports another service may be.
    """
    settings = {"ingest_target": NOBODY, "inference_target": NOBODY, **settings}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    named = {f"SIGHTLINE_EDGE_{name.upper()}": str(value) for name, value in settings.items()}
    return {**clean, "COLUMNS": "100", **named}


def sightline(*words: object, env: Mapping[str, str] | None = None) -> Done:
    """Runs a command line to its end.

    Args:
        words: after `sightline`.
        env: the whole environment; None: one without any settings.
    """
    return subprocess.run(
        [*SIGHTLINE, *map(str, words)],
        env=environment() if env is None else env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def lines(output: str) -> list[Any]:
    """Returns JSON lines."""
    return [json.loads(line) for line in output.splitlines()]
