"""Campaigns of faults are reported in one table at the end of the run: see `tests/conftest.py`."""

from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.faults.campaign import Campaign


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[Campaign], None]:
    """Put a campaign into the table, and fail the test unless it is clean."""

    def put(campaign: Campaign) -> None:
        request.node.user_properties.append(("campaign", asdict(campaign)))
        assert campaign.clean, campaign

    return put
