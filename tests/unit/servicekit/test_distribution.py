"""The name that Sightline is installed by, and the package of somebody else that has its name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge.doctor.finding import Level
from edge.doctor.packages import packages
from servicekit.distribution import DISTRIBUTION, install_hint, stranger, version

ROOT = Path(__file__).parents[3]
OLD = re.compile(r"pip install [^\n]*\bsightline(?![-_\w/.])|sightline\[")
"""An installation by the name that belongs to somebody else's package."""


def installed(folder: Path, name: str, text: str) -> None:
    """Write what an installed distribution leaves behind."""
    info = folder / f"{name.replace('-', '_')}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n{text}\n")


def test_the_version_is_that_of_the_distribution() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())


def test_a_hint_names_the_distribution_and_the_checkout() -> None:
    assert install_hint("onnx") == (
        "pip install 'sightline-vision[onnx]', or in a checkout: pip install '.[onnx]'"
    )


def test_somebody_else_s_package_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stranger() is None
    installed(tmp_path, "sightline", "Summary: Bayesian inference on eye movements")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert stranger() is not None
    (finding,) = packages()
    assert finding.level is Level.FAILED
    assert "sightline 9.9" in finding.message
    assert DISTRIBUTION in finding.action


def test_the_command_itself_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "sightline", "Summary: Bayesian inference on eye movements")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}:{ROOT / 'generated'}")
    ran = subprocess.run(
        [sys.executable, "-m", "sightline", "--help"], capture_output=True, text=True, check=True
    )
    assert "warning: the package sightline 9.9" in ran.stderr
    assert "warning" not in ran.stdout


def test_a_checkout_that_was_installed_under_the_first_name_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "sightline", "Summary: The wire between edge cameras and the cloud: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert stranger() is None


def test_two_builds_of_onnx_runtime_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(packages()) == []
    installed(tmp_path, "onnxruntime", "Summary: CPU")
    installed(tmp_path, "onnxruntime-gpu", "Summary: GPU")
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = packages()
    assert finding.level is Level.WARNING
    assert "onnxruntime-gpu" in finding.message


def test_nothing_tells_anybody_to_install_somebody_else_s_package() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.md", "*.py", "*.toml", "*.yml", "Makefile", ".ci"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wrong = [
        f"{name}: {match[0]}"
        for name in listed.stdout.splitlines()
        if (ROOT / name).exists() and name != "CHANGELOG.md"
        for match in OLD.finditer((ROOT / name).read_text())
        if name != "tests/unit/servicekit/test_distribution.py"
    ]
    assert wrong == []
