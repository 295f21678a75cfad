"""Fixture that reports a fault campaign; `tests/conftest.py` prints the table of all of them."""

from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.faults.campaign import Campaign


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[Campaign], None]:
    """Return a function that adds a campaign to the table and fails the test unless it is clean."""

    def put(campaign: Campaign) -> None:
        request.node.user_properties.append(("campaign", asdict(campaign)))
        assert campaign.clean, campaign

    return put
