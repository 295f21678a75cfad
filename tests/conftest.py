"""Settings of every test, and the table of fault campaigns at the end of a run."""

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
