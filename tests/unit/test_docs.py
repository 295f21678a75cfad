"""The documentation: links lead somewhere, lines are short, the reference has all there is."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import typer.main
from pydantic import Field

import sightline
from console_service.settings import ConsoleSettings
from docs.generate import pages, settings
from edge.settings import EdgeSettings
from inference_service.settings import InferenceSettings
from ingest_service.settings import IngestSettings
from models.plates import make_plate
from servicekit.settings import Settings
from sightline.cli.app import app

ROOT = Path(__file__).parents[2]
GENERATED = pages()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
WIDTH = 100
TESTED = {
    "how-to/backup.md": "tests/compat/test_operator_docs.py",
    "how-to/call-inference.md": "tests/compat/test_docs.py",
    "how-to/call-ingest.md": "tests/compat/test_docs.py",
    "how-to/clocks.md": "tests/compat/test_operator_docs.py",
    "how-to/console.md": "tests/integration/console/test_page.py",
    "how-to/deploy.md": "tests/unit/deploy/test_page.py",
    "how-to/export.md": "tests/compat/test_operator_docs.py",
    "how-to/models.md": "tests/compat/test_operator_docs.py",
    "how-to/monitor.md": "tests/compat/test_operator_docs.py",
    "how-to/operate.md": "tests/compat/test_operate_docs.py",
    "how-to/python.md": "tests/compat/test_edge_docs.py",
    "how-to/query.md": "tests/compat/test_operator_docs.py",
    "how-to/retention.md": "tests/compat/test_operator_docs.py",
    "how-to/secure.md": "tests/integration/auth/test_docs.py",
    "how-to/spool.md": "tests/integration/spool/test_commands.py",
    "how-to/troubleshoot.md": "tests/compat/test_edge_docs.py",
    "how-to/upgrade.md": "tests/compat/test_operate_docs.py",
    "tutorials/camera.md": "tests/compat/test_edge_docs.py",
    "tutorials/fallback.md": "tests/compat/test_tutorials.py",
    "tutorials/laptop.md": "tests/compat/test_tutorials.py",
}
"""Test files that run the commands and programs of each page."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("document", PAGES, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _prose(document.read_text()))
    local = [(document.parent / link).resolve() for link in links if "://" not in link]
    assert [path for path in local if not path.exists()] == []


@pytest.mark.parametrize("path", GENERATED)
def test_the_checkout_says_where_a_generated_page_is(path: str) -> None:
    note = (ROOT / "docs" / path).read_text()
    assert note.splitlines()[0] in GENERATED[path].splitlines()
    assert "`make docs` writes this page" in note
    assert len(note.splitlines()) < 12, "the page itself is not for the repository"


@pytest.mark.parametrize("document", PAGES, ids=name)
def test_lines_are_short_where_no_table_or_link_prevents_it(document: Path) -> None:
    long = [
        line
        for line in document.read_text().splitlines()
        if len(line) > WIDTH and not line.startswith("|") and "](" not in line
    ]
    assert long == []


@pytest.mark.parametrize("document", PAGES, ids=name)
def test_figures_are_in_tables(document: Path) -> None:
    paragraphs = _prose(document.read_text()).split("\n\n")
    figures = {part: re.findall(r"(?<![\w-])\d[\d.,]*", part) for part in paragraphs}
    full = [part for part, found in figures.items() if len(found) >= 20 and part[0] != "|"]
    assert full == []


@pytest.mark.parametrize("document", PAGES, ids=name)
def test_nothing_installs_the_package_of_somebody_else(document: Path) -> None:
    """On the public index `sightline` is another project's."""
    assert not re.search(r"pip install .*\bsightline(?!-vision)\b", document.read_text())


def test_every_page_with_commands_has_a_test_that_runs_them() -> None:
    with_commands = {
        str(page.relative_to(ROOT / "docs"))
        for page in ROOT.glob("docs/**/*.md")
        if re.search(r"^```(sh|python)$", page.read_text(), re.MULTILINE)
    }
    assert with_commands == set(TESTED)
    for page, test in TESTED.items():
        assert page in (ROOT / test).read_text(), f"{test} does not name {page}"


@pytest.mark.parametrize("part", [ConsoleSettings, EdgeSettings, IngestSettings, InferenceSettings])
def test_the_reference_has_every_setting(part: type) -> None:
    page = GENERATED["reference/settings.md"]
    fields = part.model_fields  # type: ignore[attr-defined]
    assert [field for field in fields if f"| `{field}` |" not in page] == []


def test_a_setting_has_its_default_and_its_bounds() -> None:
    page = GENERATED["reference/settings.md"]
    (row,) = [line for line in page.splitlines() if line.startswith("| `cloud_reserve_seconds` |")]
    assert "| `1.0` |" in row
    assert "At least 0, at most 3 600." in row


class _Grouped(Settings):
    part: ClassVar[str] = "edge"

    target: str = Field("here", description="address", json_schema_extra={"basic": True})
    patience: float = Field(1.5, gt=0, description="time to wait, s")


def test_settings_are_shown_in_a_first_and_an_advanced_group() -> None:
    page = "\n".join(settings.section("Part", "edge", "", _Grouped, ["target", "patience"]))
    _, first, advanced = page.split("### ")
    assert first.startswith("Part: first settings\n")
    assert "| `target` | `here` | address. |" in first
    assert advanced.startswith("Part: advanced\n")
    assert "| `patience` | `1.5` | time to wait, s. Above 0. |" in advanced


def test_the_reference_has_every_command_and_option() -> None:
    page = GENERATED["reference/commands.md"]

    def check(group: object, path: str) -> None:
        for child, command in group.commands.items():  # type: ignore[attr-defined]
            heading = f"# {path} {child}\n"
            assert heading in page
            if hasattr(command, "commands"):
                check(command, f"{path} {child}")
            else:
                own = page.partition(heading)[2].partition("\n#")[0]
                shown = [one for one in command.params if not one.hidden]
                flags = [opt for one in shown for opt in one.opts if opt[:2] == "--"]
                assert [flag for flag in flags if flag != "--help" and flag not in own] == []

    check(typer.main.get_command(app), "sightline")


def test_the_reference_has_every_rpc_message_and_field_with_its_comment() -> None:
    page = GENERATED["reference/rpcs.md"]
    for proto in ROOT.glob("proto/**/*.proto"):
        code = re.sub(r"//.*", "", proto.read_text())
        for kind, one in re.findall(r"\b(rpc|message|enum|service) (\w+)", code):
            assert re.search(rf"^#+ (\w+\.)?{one}\b", page, re.MULTILINE), f"{kind} {one}"
        for field in re.findall(r"(\w+) = \d+;", code):
            assert f"| `{field}` |" in page, field
    assert "| `confidence` | 3 | `float` | The model's confidence in [0, 1]. |" in page
    assert "stream of [PredictionLogRequest](#sightline.ingest.v1.PredictionLogRequest)" in page


def test_the_reference_has_every_public_name() -> None:
    page = GENERATED["reference/python.md"]
    named = re.findall(r"^::: sightline\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(sightline.__all__)


def test_links_within_a_generated_page_lead_to_its_headings() -> None:
    page = GENERATED["reference/rpcs.md"]
    anchors = set(re.findall(r"\{#([\w.]+)\}", page))
    assert set(re.findall(r"\]\(#([\w.]+)\)", page)) <= anchors


def test_links_of_the_commands_lead_to_headings_of_the_settings() -> None:
    headings = re.findall(r"^#+ (.+)$", GENERATED["reference/settings.md"], re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"\]\(settings\.md#([\w-]+)\)", GENERATED["reference/commands.md"]))
    assert len(linked) == 3
    assert linked <= anchors


def test_the_sample_images_are_those_that_we_draw() -> None:
    np = pytest.importorskip("numpy")
    image = pytest.importorskip("PIL.Image")
    found = sorted((ROOT / "examples/pictures").iterdir())
    assert [path.name for path in found] == [f"plate-{seed}.jpg" for seed in range(1, 7)]
    for seed, path in enumerate(found, 1):
        drawn = make_plate(seed).image.astype(int)
        with image.open(path) as picture:
            assert np.abs(np.asarray(picture).astype(int) - drawn).mean() < 5


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def test_performance_says_in_words_what_is_not_measured() -> None:
    text = (ROOT / "docs/performance.md").read_text()
    assert "not measured" in text
    assert not re.findall(r"cannot open|No such file|Traceback|[A-Z]\w+Error", text)
