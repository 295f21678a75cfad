"""The page beside services that are away, ask for a key, or commit while it is open."""

import itertools
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2
from sightline.types.v1 import prediction_pb2

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from tests.browser.conftest import Open
from tests.browser.console import ConsoleProcess
from tests.browser.fleet import prediction
from tests.integration.ingest.process import IngestProcess

NOON = 1_790_000_000.0
HOSTILE_DEVICE = '<b id="hacked">gate</b>'
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[IngestProcess]:
    server = IngestProcess(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def console(tmp_path: Path, server: IngestProcess) -> Iterator[ConsoleProcess]:
    console = ConsoleProcess(tmp_path, server.address)
    yield console
    console.process.kill()
    console.process.wait()


class Logger:
    """Logs predictions of one device, one stream each."""

    def __init__(self, server: IngestProcess, device: str = "gate-1") -> None:
        self._server = server
        self._header = ingest_pb2.LogHeader(device_id=device, spool_id=str(uuid.uuid4()))
        self._sequences = itertools.count(1)

    def log(self, count: int) -> int:
        """Log so many predictions.

        Returns:
            The last sequence.
        """
        return self.send([prediction(next(self._sequences), NOON) for _ in range(count)])

    def lose(self, first: int, last: int, each: int) -> None:
        """Declare sequences lost.

        Args:
            first: first sequence.
            last: last sequence.
            each: length of each gap.
        """
        gaps = [
            ingest_pb2.Gap(
                first_sequence=begin,
                last_sequence=begin + each - 1,
                reason=ingest_pb2.GAP_REASON_SPOOL_BYTES,
            )
            for begin in range(first, last + 1, each)
        ]
        request = ingest_service_pb2.PredictionLogRequest(header=self._header, gaps=gaps)
        self._server.log_messages(request)

    def send(self, made: Sequence[prediction_pb2.Prediction]) -> int:
        """Log these predictions.

        Returns:
            The last sequence.
        """
        request = ingest_service_pb2.PredictionLogRequest(header=self._header, predictions=made)
        return self._server.log_messages(request).committed_through


def test_an_empty_log(console: ConsoleProcess, visit: Open) -> None:
    visited = visit(console)
    page = visited.open()
    expect(page.locator('[data-panel="devices"]')).to_contain_text("No device has logged yet")
    expect(page.locator(".failure")).to_have_count(0)
    for view in ("ledger", "models"):
        visited.open(f"/?view={view}")
        expect(page.locator(".failure")).to_have_count(0)


def test_what_is_committed_appears(
    console: ConsoleProcess, server: IngestProcess, visit: Open
) -> None:
    visited = visit(console)
    page = visited.open()
    expect(page.locator('[data-panel="live"]')).not_to_contain_text("connecting")
    logger = Logger(server)
    logger.log(3)
    lines = page.locator('[data-panel="live"] .lines li')
    expect(lines).to_have_count(3)
    logger.log(500)
    expect(page.locator('[data-panel="live"]')).to_contain_text("more than 50 a second")
    assert lines.count() <= 60
    page.locator('[data-panel="live"] .lines a').first.click()
    visited.settle()
    expect(page.locator('[data-panel="prediction"]')).to_contain_text("frame-503.jpg")


def hide(page: Page, *, hidden: bool) -> None:
    """Hide a tab, or show it again: no tab of a browser without windows is ever hidden."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_hidden_tab_leaves_its_stream_to_others_and_goes_on_where_it_was(
    tmp_path: Path, server: IngestProcess, visit: Open
) -> None:
    console = ConsoleProcess(tmp_path, server.address, "--max-live", "1")
    try:
        first, second = visit(console), visit(console)
        first.refusals = second.refusals = True
        logger = Logger(server)
        live, lines = '[data-panel="live"]', '[data-panel="live"] .lines li'
        first.open()
        expect(first.page.locator(live)).not_to_contain_text("connecting")
        logger.log(1)
        expect(first.page.locator(lines)).to_have_count(1)
        second.open()
        expect(second.page.locator(live)).to_contain_text("connecting again")
        hide(first.page, hidden=True)
        expect(second.page.locator(live)).not_to_contain_text("connecting")
        logger.log(2)
        expect(second.page.locator(lines)).to_have_count(2)
        hide(second.page, hidden=True)
        hide(first.page, hidden=False)
        expect(first.page.locator(lines)).to_have_count(3)
    finally:
        console.process.kill()
        console.process.wait()


def test_a_sequence_beyond_the_numbers_of_a_browser_keeps_its_digits(
    console: ConsoleProcess, server: IngestProcess, visit: Open
) -> None:
    large = 2**53 + 1
    visited = visit(console)
    page = visited.open()
    expect(page.locator('[data-panel="live"]')).not_to_contain_text("connecting")
    logger = Logger(server)
    logger.lose(1, large - 1, each=large - 1)
    one = prediction(large, NOON)
    logger.send([one])
    page.locator('[data-panel="live"] .lines a').click()
    visited.settle()
    found = page.locator('[data-panel="prediction"]')
    expect(found).to_contain_text(one.image_id)
    expect(found).to_contain_text(f"{large:,}")
    expect(page.locator('[data-panel="same"]')).to_contain_text(f"AND sequence = {large}")
    visited.open("/?view=ledger")
    expect(page.locator('[data-panel="gaps"] tbody')).to_contain_text(f"{large - 1:,}")
    expect(page.locator('[data-panel="gaps"] tbody')).to_contain_text(f"1 to {large - 1}")


def test_further_pages_have_no_hole_when_the_first_is_read_again(
    console: ConsoleProcess, server: IngestProcess, visit: Open
) -> None:
    logger = Logger(server)
    logger.lose(1, 150, each=1)
    visited = visit(console)
    page = visited.open("/?view=ledger")
    gaps = page.locator('[data-panel="gaps"]')
    expect(gaps.locator("tbody tr")).to_have_count(100)
    gaps.get_by_role("button", name="more").click()
    expect(gaps.locator("tbody tr")).to_have_count(150)
    logger.lose(151, 151, each=1)
    with page.expect_response(re.compile("/gaps")):
        hide(page, hidden=False)
    expect(page.locator('[data-panel="spools"] tbody')).to_contain_text("151")
    shown = gaps.locator("tbody td:nth-child(4)").all_inner_texts()
    assert {f"{number} to {number}" for number in range(1, 151)} <= set(shown)


def test_hostile_names_stay_text(
    console: ConsoleProcess, server: IngestProcess, visit: Open
) -> None:
    hostile = prediction(5, time.time() - 60)
    hostile.sequence = 1
    hostile.image_id = hostile.model_name = hostile.model_version = HOSTILE
    hostile.labels[HOSTILE] = HOSTILE
    for found in hostile.detections:
        found.class_name = HOSTILE
    Logger(server, HOSTILE_DEVICE).send([hostile])
    visited = visit(console)
    page = visited.open()
    expect(page.locator('[data-panel="devices"]')).to_contain_text(HOSTILE_DEVICE)
    page.get_by_role("link", name=HOSTILE).click()  # the class, on the map of the frame
    visited.settle()
    page.locator('[data-panel="devices"] .tile').click()
    visited.settle()
    page.keyboard.press("m")
    expect(page.locator('[data-panel="models"]')).to_contain_text(HOSTILE)
    page.keyboard.press("l")
    expect(page.locator('[data-panel="spools"]')).to_contain_text(HOSTILE_DEVICE)
    assert page.locator("#hacked, main img, main script").count() == 0
    assert "hacked" not in page.title().replace(HOSTILE_DEVICE, "")


def test_a_service_that_is_away_and_comes_back(
    tmp_path: Path, server: IngestProcess, visit: Open
) -> None:
    Logger(server).log(10)
    address = server.address
    server.stop()
    console = ConsoleProcess(tmp_path, address)
    visited = visit(console)
    visited.refusals = True
    page = visited.open()
    expect(page.locator('[data-panel="ledger"] .failure')).to_contain_text("UNREACHABLE")
    assert page.locator('[data-panel="devices"] .failure').count() == 1
    again = IngestProcess(tmp_path, "--listen", address)
    again.start()
    try:
        panel = page.locator('[data-panel="ledger"]')
        while panel.locator("tbody").count() == 0:  # the console dials anew within 2 s
            panel.locator(".failure button").click()
            page.wait_for_timeout(200)
        expect(panel.locator("tbody")).to_contain_text("gate-1")
    finally:
        again.kill()
        console.process.kill()
        console.process.wait()


def test_a_key_is_asked_for(tmp_path: Path, visit: Open) -> None:
    key, _ = KeyFile(tmp_path / "keys.db").create("reader", devices=["gate-1"], scopes=[Scope.READ])
    server = IngestProcess(tmp_path, "--api-keys-file", str(tmp_path / "keys.db"))
    server.start()
    console = ConsoleProcess(tmp_path, server.address)
    try:
        visited = visit(console)
        visited.refusals = True
        page = visited.open("/?device=gate-1")
        field = page.get_by_label("API key or token")
        expect(field).to_be_visible()
        field.fill("sl_wrong")
        page.get_by_role("button", name="sign in").click()
        expect(page.get_by_role("alert")).to_be_visible()
        field.fill(key)
        page.get_by_role("button", name="sign in").click()
        expect(page.locator('[data-panel="ledger"]')).to_contain_text("Nothing is committed yet")
        page.goto(f"{console.url}/?view=prediction&device=gate-1&spool=none&sequence=1")
        expect(page.locator('[data-panel="same"]')).to_contain_text("Authorization: Bearer $KEY")
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert page.evaluate("document.cookie") == ""
        page.goto("about:blank")
        tab = page.context.new_page()
        tab.goto(console.url)
        tab.get_by_role("button", name="sign out").click()
        expect(tab.get_by_label("API key or token")).to_be_visible()
        assert not page.context.cookies()
    finally:
        console.process.kill()
        console.process.wait()
        server.kill()
