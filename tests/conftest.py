"""Settings of every test, failures as they happen, and the table of fault campaigns at the end."""

import gc
import os

import pytest
from hypothesis import settings
from rich.console import Console
from rich.table import Table

from tests.faults.campaign import Campaign
from tests.signals import start_children_with_defaults

# The duration of an example depends on the load of the machine; pytest-timeout ends hung tests.
settings.register_profile("sightline", deadline=None)
settings.load_profile("sightline")

start_children_with_defaults()
# Tests call services of this machine; a proxy of the environment is for pip and the like.
os.environ["no_proxy"] = ",".join(
    filter(None, (os.environ.get("no_proxy"), "127.0.0.1", "localhost", "::1"))
)


class FailureReporter:
    """Prints the text of each failure when it happens, so that a run that is cut off has told it.

    pytest prints it at the end only. A worker that crashes while it runs no test fails the run as
    well, which xdist takes for good. This is used in the process that reports, not in the workers.
    """

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._crashed = False

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        self._terminal.write_line("")  # the line of dots has no end yet
        self._terminal.write_sep("_", report.nodeid, red=True)
        self._terminal.write_line(report.longreprtext)
        for title, text in report.sections:
            self._terminal.write_sep("-", title)
            self._terminal.write_line(text.rstrip())
        self._terminal.flush()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object | None) -> None:
        self._crashed |= error is not None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._crashed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_sessionstart(session: pytest.Session) -> None:
    """Print failures at once; in `pytest_configure` there is no `terminalreporter` yet.

    Until all tests are collected, nothing is garbage, and the collector would visit all that was
    imported and collected again and again: a third of the time.
    """
    gc.disable()
    terminal = session.config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:
        session.config.pluginmanager.register(FailureReporter(terminal), "failures")


def pytest_collection_finish() -> None:
    """Let the collector run again, without what was collected so far, which stays to the end."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a table of the results of the campaigns in `tests/faults`, from all processes."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    campaigns = [
        Campaign(**value)
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in report.user_properties
        if key == "campaign"
    ]
    if not campaigns:
        return
    table = Table("campaign", "runs", "lost", "doubled", "undeclared", "note", title="Faults")
    for campaign in campaigns:
        counts = (campaign.runs, campaign.lost, campaign.doubled, campaign.undeclared)
        table.add_row(campaign.name, *map(str, counts), campaign.note)
    console = Console(width=120)
    with console.capture() as text:
        console.print(table)
    terminalreporter.write(text.get())
