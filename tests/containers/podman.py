"""Images and containers by Debian's podman, buildah, runc and debootstrap.

No registry of images is needed: the base is bootstrapped from Debian's packages once and kept in
podman's store, and pip gets its wheels from a folder. `obstacle` says why a machine cannot do it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy/containers"
BASE = "localhost/sightline-test/base:bookworm"
"""Debian with Python 3.11 and venv, as `python:3.12-slim` is with its own Python."""
PROGRAMS = ("podman", "buildah", "runc", "debootstrap")
BUILD_SECONDS = 900.0
PATIENCE = 60.0
"""Maximum time that a test waits for an expected event, s."""
# A container is given nothing that the services do not need.
STRICT = (
    *("--pull=never", "--network=host", "--read-only", "--tmpfs=/tmp", "--no-healthcheck"),
    *("--cap-drop=all", "--security-opt=no-new-privileges"),
    # A sandbox may forbid to raise the limits that podman sets by default.
    *("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"),
)
WHEELS_OF = ("cyclonedx-bom==7.5.0", "hatchling")
"""Packages that the container files install beside the project's own requirements."""


class PodmanError(Exception):
    """A command of podman or buildah that failed, with the end of its output."""


def run(*words: object, timeout: float = PATIENCE, check: bool = True, text: str = "") -> str:
    """Run a command and return its stdout.

    Raises:
        PodmanError: it failed, and `check` is set.
    """
    done = subprocess.run(
        [str(word) for word in words], input=text, capture_output=True, text=True, timeout=timeout
    )
    if check and done.returncode != 0:
        raise PodmanError(f"{' '.join(map(str, words[:3]))}: {done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def podman(*words: object, timeout: float = PATIENCE, check: bool = True) -> str:
    """Run podman with runc, which needs less of a sandbox than crun does."""
    return run("podman", "--runtime", "runc", *words, timeout=timeout, check=check)


def obstacle() -> str:
    """Return why no container can be built or run here, as a sentence; empty: nothing is known."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"containers need {', '.join(missing)}: apt-get install {' '.join(missing)}"
    if os.getuid() != 0:
        return "containers need root here: debootstrap makes device files and changes its root"
    if sys.version_info[:2] != (3, 11):
        return "the wheels for Debian 12's Python 3.11 need a Python 3.11 to choose them"
    return ""


def make_base(folder: Path) -> None:
    """Put the base image into podman's store, unless it is there.

    Raises:
        PodmanError: the machine's sandbox or registry does not allow it.
    """
    if not podman("images", "--quiet", BASE):
        tree = folder / "base"
        packages = "--include=python3,python3-venv,ca-certificates"
        run("debootstrap", "--variant=minbase", packages, "bookworm", tree, timeout=BUILD_SECONDS)
        for waste in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc"):
            shutil.rmtree(tree / waste)
        archive = folder / "base.tar"
        run("tar", "-C", tree, "-cf", archive, ".", timeout=BUILD_SECONDS)
        podman("import", archive, BASE, timeout=BUILD_SECONDS)
        archive.unlink()
        shutil.rmtree(tree)
    podman("run", "--rm", *STRICT, BASE, "true")


def download_wheels(folder: Path) -> Path:
    """Return a folder with every wheel that the images install."""
    extras = f"{ROOT}[ingest,inference-cpu,console,onnx,video,metrics]"
    pinned = (ROOT / "constraints.txt").read_text()
    constraints = folder / "constraints.txt"
    constraints.write_text(pinned + _pin_of_the_cpu_build(pinned))
    wheels = folder / "wheels"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", wheels)
    run(*pip, "--constraint", constraints, extras, timeout=BUILD_SECONDS)
    run(*pip, *WHEELS_OF, timeout=BUILD_SECONDS)
    # The image must be built from this checkout.
    for path in wheels.glob("sightline_vision*"):
        path.unlink()
    return wheels


def _pin_of_the_cpu_build(constraints: str) -> str:
    name, version = "onnxruntime-gpu==", ""
    for line in constraints.splitlines():
        if line.startswith(name):
            version = line.removeprefix(name)
    assert version, "constraints.txt pins no onnxruntime-gpu"
    return f"onnxruntime=={version}\n"


@dataclass
class Image:
    """An image that was built, and what the table at the end says of it."""

    service: str
    tag: str
    build_seconds: float
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, as `podman image inspect` prints it."""
        (found,) = json.loads(podman("image", "inspect", self.tag))
        return dict(found)

    def python(self, program: str) -> str:
        """Run a Python program in a container and return its stdout."""
        python = "--entrypoint=/opt/sightline/bin/python"
        return podman("run", "--rm", *STRICT, python, self.tag, "-c", program).strip()


def build(service: str, wheels: Path, *arguments: str) -> Image:
    """Build the image of a service from this checkout, without a network."""
    tag = f"localhost/sightline-test/{service}:{uuid.uuid4().hex[:12]}"
    begun = time.monotonic()
    run(
        # `docker` keeps HEALTHCHECK, which the OCI format has no place for.
        *("buildah", "bud", "--isolation=chroot", "--layers=false", "--format=docker"),
        *("--volume", f"{wheels}:/wheels:ro", "--build-arg", f"BASE={BASE}"),
        *("--build-arg", "PIP_ARGS=--no-index --find-links=/wheels", *arguments),
        *("--file", FILES / f"Containerfile.{service}", "--tag", tag, ROOT),
        timeout=BUILD_SECONDS,
    )
    return Image(service, tag, time.monotonic() - begun)


class Container:
    """A container that runs in the background."""

    def __init__(self, name: str) -> None:
        self.name = name

    def exec(self, *words: str) -> str:
        """Run a command in the container and return its stdout."""
        return podman("exec", self.name, *words)

    @property
    def stdout(self) -> str:
        """Text that the container has printed on stdout."""
        return podman("logs", self.name)

    def ready(self) -> dict[str, Any]:
        """Wait for the line that says that the service is ready, and return it."""
        ends_at = time.monotonic() + PATIENCE
        while time.monotonic() < ends_at:
            for line in self.stdout.splitlines():
                return dict(json.loads(line))
            assert self._state()["Running"], podman("logs", self.name, check=False)
            time.sleep(0.05)
        raise AssertionError(f"{self.name} was not ready after {PATIENCE:g} s")

    def terminate(self) -> tuple[int, float]:
        """Send the image's stop signal; return the exit code and the seconds that it took."""
        begun = time.monotonic()
        podman("kill", "--signal", "TERM", self.name)
        code = int(podman("wait", self.name).strip())
        return code, time.monotonic() - begun

    def restart(self) -> None:
        """Start the container again, on the same volume."""
        podman("start", self.name)

    def _state(self) -> dict[str, Any]:
        (found,) = json.loads(podman("inspect", self.name))
        return dict(found["State"])


@contextmanager
def running(
    image: Image,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[Container]:
    """Run a container with nothing but its settings, and remove it and its volumes afterwards."""
    name = f"sightline-test-{uuid.uuid4().hex[:12]}"
    settings = [f"--env={key}={value}" for key, value in (env or {}).items()]
    podman("run", "--detach", "--name", name, *STRICT, *settings, *options, image.tag, *arguments)
    try:
        yield Container(name)
    finally:
        podman("rm", "--force", "--volumes", "--time=0", name)


def refusal(
    image: Image, env: Mapping[str, str], *arguments: str, options: Sequence[str] = ()
) -> tuple[int, str]:
    """Run a container that cannot start; return its exit code and what it printed."""
    settings = [f"--env={key}={value}" for key, value in env.items()]
    done = subprocess.run(
        [
            *("podman", "--runtime", "runc", "run", "--rm", *STRICT),
            *(*settings, *options, image.tag, *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
