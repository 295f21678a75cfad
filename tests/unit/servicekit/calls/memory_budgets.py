"""Builders for the tests of the memory budget."""

from typing import Any

import grpc
import pytest

from servicekit.calls import memory_budget
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.memory_budget import (
    MemoryBudget,
)
from servicekit.errors import SightlineError
from tests.unit.servicekit.echo import Context


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "_TICK_SECONDS", 0.005)


def pool_of(most: int, largest: int, patience: float = 0.05, **bounds: float) -> MemoryBudget:
    given: dict[str, Any] = {"patience_seconds": patience, **bounds}
    return MemoryBudget(BudgetBounds(most, largest, stalled_seconds=0, stuck_seconds=0, **given))


def check_refused(error: SightlineError, reason: str = "TOO_MUCH_IN_FLIGHT") -> None:
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == reason
    assert error.retryable
    assert error.retry_after
    assert error.quotas


async def nothing(_context: Context) -> None:
    pass
