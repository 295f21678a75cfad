"""Real services, a real log, and Debian's Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.browser.console import ConsoleProcess
from tests.browser.fleet import send
from tests.integration.ingest.process import IngestProcess

CHROMIUM = shutil.which("chromium")
MODULES = Path(__file__).parent / "node_modules"
SIZE = (1500, 1100)
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for the tests of one file.

    While Playwright runs, its event loop is the thread's, so it must have ended before the next
    asynchronous test: the fixtures of pytest-playwright, which end with the session, will not do.
    """
    if CHROMIUM is None:
        sentence = "there is no Chromium here: `make browser` installs Debian's, as root"
        if os.environ.get("SIGHTLINE_REQUIRE_COMPAT"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    flags = ["--disable-dev-shm-usage"]  # /dev/shm is small in containers
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # it does not run as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@dataclass
class Fleet:
    """Services with a log.

    Attributes:
        server: the ingest service.
        console: the console.
        spools: the spool of each device.
    """

    server: IngestProcess
    console: ConsoleProcess
    spools: dict[str, str]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that tests only read."""
    folder = tmp_path_factory.mktemp("fleet")
    server = IngestProcess(folder)
    server.start()
    console = ConsoleProcess(folder, server.address)
    try:
        yield Fleet(server, console, send(server))
        assert console.stop() == 0
        assert "Traceback" not in console.log.read_text()
    finally:
        console.process.kill()
        server.kill()


@dataclass
class Visit:
    """A page, with what it has said and fetched."""

    page: Page
    url: str
    said: list[str] = field(default_factory=list)
    """Messages of the browser's console, and errors that no code caught."""
    foreign: list[str] = field(default_factory=list)
    """Requests that left the host."""
    refusals: bool = False
    """True: requests fail in this test, for each of which the browser itself writes a line."""

    def open(self, path: str = "/") -> Page:
        """Open a path of the console and wait until no panel loads."""
        self.page.goto(self.url + path)
        self.settle()
        return self.page

    def settle(self) -> None:
        """Wait until no panel loads."""
        self.page.wait_for_selector("main [data-panel], main form")
        expect(self.page.locator('[aria-busy="true"]')).to_have_count(0)


Open = Callable[..., Visit]


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """Return a function that prepares a page on a console.

    The test fails if the page writes to the browser's console or fetches from another host.
    """
    visits: list[Visit] = []

    def prepare(console: ConsoleProcess, **options: object) -> Visit:
        settings: dict[str, object] = {"viewport": {"width": SIZE[0], "height": SIZE[1]}, **options}
        page = chromium.new_context(**settings).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE_MS)
        made = Visit(page, console.url)
        host = urlsplit(console.url).netloc

        def look(request: Request) -> None:
            parts = urlsplit(request.url)
            if parts.scheme not in ("data", "blob") and parts.netloc != host:
                made.foreign.append(request.url)

        def hear(message: ConsoleMessage) -> None:
            refused = made.refusals and message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not refused:
                made.said.append(message.text)

        page.on("request", look)
        page.on("console", hear)
        page.on("pageerror", lambda error: made.said.append(str(error)))
        visits.append(made)
        return made

    yield prepare
    for made in visits:
        made.page.context.close()
        assert not made.foreign
        assert not made.said
