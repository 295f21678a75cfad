"""Run the store's tests on the newest DuckDB, pre-releases included: `make next`.

It is installed into its own folder, before the environment's packages. If there is none beyond
the bound in pyproject.toml, or the registry does not answer soon, the program says so and exits 0.
"""

import os
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/duckdb/next"
STORE_TESTS = ("test_file_store", "test_maintenance", "test_parquet_export", "test_rollups")
INSTALL_SECONDS = 60.0
TEST_SECONDS = 110.0
"""With the installation below three minutes."""


def bound() -> Requirement:
    """Return the DuckDB requirement of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in project["optional-dependencies"]["ingest"]]
    (requirement,) = (item for item in requirements if item.name == "duckdb")
    return requirement


def install(folder: Path, seconds: float, command: tuple[str, ...] = ()) -> str | None:
    """Install the newest version into the folder and return it; None if none arrived in time.

    Args:
        folder: empty target folder.
        seconds: time limit.
        command: install command without the folder; empty for pip.
    """
    pip = (
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--pre", "--upgrade"),
        *("--retries", "0", "--only-binary", ":all:", "duckdb"),
    )
    try:
        subprocess.run(
            [*(command or pip), "--target", str(folder)],
            env={**os.environ, "PIP_CONSTRAINT": ""},
            timeout=seconds,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    (distribution,) = metadata.distributions(name="duckdb", path=[str(folder)])
    return distribution.version


def verdict(version: str | None, requirement: Requirement) -> str | None:
    """Return the reason why there is nothing to test; None if there is something."""
    if version is None:
        return "make next: not tried, because the registry did not bring DuckDB in time"
    if requirement.specifier.contains(version, prereleases=True):
        return f"make next: nothing to try, {version} is the newest DuckDB and within the bound"
    if Version(version) < Version(metadata.version("duckdb")):
        return f"make next: nothing to try, {version} is older than ours"
    return None


def run_tests(folder: Path, seconds: float) -> int:
    """Run the tests and return pytest's exit code; 124 if they took too long."""
    tests = [f"tests/unit/ingest_service/store/duckdb/{name}.py" for name in STORE_TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen(
        [*command, *tests], cwd=ROOT, env=environment, start_new_session=True
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the services that it has started
            return 124


def main() -> int:
    """Print the result; return 1 if the tests fail on a DuckDB beyond the bound."""
    version = install(FOLDER, INSTALL_SECONDS)
    if why := verdict(version, bound()):
        print(why)  # noqa: T201
        return 0
    code = run_tests(FOLDER, TEST_SECONDS)
    if code == 124:
        print(f"make next: not decided, the tests on DuckDB {version} took too long")  # noqa: T201
        return 0
    print(f"make next: the store's tests {'fail' if code else 'pass'} on DuckDB {version}")  # noqa: T201
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
