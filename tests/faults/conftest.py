"""Every campaign is reported in one table at the end of the run."""

from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table

from tests.faults.campaign import REPORTED, Campaign


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Callable[[Campaign], None]:
    """Puts a campaign into the table, and fails the test unless it is clean."""
    reported = pytestconfig.stash.setdefault(REPORTED, [])

    def put(campaign: Campaign) -> None:
        reported.append(campaign)
        assert campaign.clean, campaign

    return put


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    campaigns = config.stash.get(REPORTED, [])
    if not campaigns:
        return
    table = Table("campaign", "runs", "lost", "doubled", "undeclared", "note", title="Faults")
    for one in campaigns:
        counts = (one.runs, one.lost, one.doubled, one.undeclared)
        table.add_row(one.name, *map(str, counts), one.note)
    console = Console(width=120)
    with console.capture() as text:
        console.print(table)
    terminalreporter.write(text.get())
