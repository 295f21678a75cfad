"""Item 4: whatever the other callers do, one below its fair share is answered in time.

Simulated: see `floods`. The shapes of the floods and the seeds of all that is random are numbers,
so a failure can be run again.
"""

import random
from dataclasses import dataclass

import pytest

from tests.unit.inference_service.serving.floods import DECODE_SECONDS, FloodKind, FloodWorld

SHARE = 0.95  # of the calls of a caller below its share that must be in time
GOODPUT = 0.9  # of what the workers can do
QUICK, SOAK = range(8), range(200)
CALLS = 60


@dataclass(frozen=True)
class Flood:
    """A well-behaved caller and others beside it."""

    world: FloodWorld
    good: FloodKind
    others: list[FloodKind]
    seconds: float
    overloaded: bool


def flood(seed: int) -> Flood:
    """Return a flood of a random shape.

    The well-behaved caller asks for half of its share, one to four pictures a request, with a
    deadline that leaves time for a few of the longest runs that there are.
    """
    chance = random.Random(seed)
    run = chance.choice((0.01, 0.025, 0.1))
    workers = chance.choice((1, 2, 4))
    world = FloodWorld(
        {"model": run, "other": run * chance.choice((0.5, 3.0))},
        workers=workers,
        max_rows=chance.choice((1, 1, 4)),
        queue_size=chance.choice((32, 64)),
        seed=seed,
    )
    world.warm_up()
    others, callers = [], 0
    for number in range(chance.choice((1, 1, 2, 3))):
        identities = chance.choice((1, 1, 1, 4, 12))
        callers += identities
        others.append(_other(chance, number, identities, run, workers))
    longest = max(3 * run, *(run + kind.pixels * DECODE_SECONDS for kind in others))
    pictures = chance.choice((1, 1, 1, 2, 4))
    good = FloodKind(
        "good",
        rate=0.5 * workers / run / (callers + 1) / pictures,
        deadline=chance.uniform(3, 10) * longest * (1 + pictures / workers),
        pictures=pictures,
        paced=True,
    )
    # More than can be done, evenly, by callers that would take an answer in time.
    steady = [kind for kind in others if kind.burst == 1 and kind.deadline >= 4 * longest]
    overloaded = sum(k.rate * k.pictures for k in steady if k.patience is None) * run > 3 * workers
    return Flood(world, good, others, CALLS / good.rate, overloaded)


def _other(
    chance: random.Random, number: int, identities: int, run: float, workers: int
) -> FloodKind:
    pictures = chance.choice((1, 1, 16))
    burst = chance.choice((1, 1, 10))
    return FloodKind(
        f"flood{number}",
        rate=chance.choice((0.5, 2, 4)) * workers / run / pictures,
        deadline=run * chance.choice((3, 20, 2000)) * (8 if pictures > 1 else 1),
        lane=chance.choice(("model", "model", "other")),
        pictures=pictures,
        pixels=chance.choice((0, 0, int(5 * run / DECODE_SECONDS))),
        identities=identities,
        burst=burst,
        patience=chance.choice((None, None, 2 * run)),
    )


SEEDS = [
    *(pytest.param(seed, id=f"quick-{seed}") for seed in QUICK),
    *(pytest.param(seed, marks=pytest.mark.soak, id=f"soak-{seed}") for seed in SOAK),
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_caller_below_its_share_is_in_time_under_any_flood(seed: int) -> None:
    result = flood(seed)
    result.world.run([result.good, *result.others], result.seconds)
    summary = f"{result.good}, {result.others}: {result.world.outcomes}"
    assert result.world.outcomes["good"].ratio >= SHARE, summary
    if result.overloaded:
        assert result.world.busy >= GOODPUT * result.world.workers * result.seconds, summary
        useful = sum(each.worker_seconds for each in result.world.outcomes.values())
        assert useful >= GOODPUT * result.world.busy, summary


def test_calls_with_long_deadlines_do_not_delay_others() -> None:
    world = FloodWorld({"model": 0.025})
    world.warm_up()
    world.run([FloodKind("good", 20, 0.3), FloodKind("patient", 800, 3600)], 20)
    assert world.outcomes["good"].ratio >= SHARE
    assert world.busy >= GOODPUT * 2 * 20


@pytest.mark.slow
def test_a_caller_with_a_new_identity_for_each_call_shuts_nobody_out() -> None:
    world = FloodWorld({"model": 0.025})
    world.warm_up()
    world.run([FloodKind("good", 0.6, 1.0), FloodKind("many", 400, 60, identities=None)], 120)
    assert world.outcomes["good"].ratio >= 0.9  # its first call is one of a stranger, too


def test_large_images_of_one_caller_do_not_make_another_one_s_late() -> None:
    """Item 5, under load: what a picture costs is known by its size."""
    world = FloodWorld({"model": 0.025})
    world.warm_up()
    large = FloodKind("large", 20, 10, pixels=40_000_000)
    world.run([FloodKind("good", 20, 1.0), large], 30)
    assert world.outcomes["good"].ratio >= SHARE


@pytest.mark.parametrize("seed", SEEDS)
def test_runs_that_outlast_a_deadline_make_no_short_run_late(seed: int) -> None:
    """A run cannot be interrupted, so short ones of another caller pass long ones."""
    chance = random.Random(seed)
    run, workers, pictures = 0.02, chance.choice((1, 2, 4)), chance.choice((1, 16))
    long = chance.uniform(1.0, 4.0)
    good = FloodKind(
        "good", 0.2 * workers / run, deadline=chance.uniform(0.3, 0.9) * long, paced=True
    )
    flood = FloodKind(
        "flood",
        2 * workers / long / pictures,
        deadline=1e6,
        pictures=pictures,
        pixels=int(long / DECODE_SECONDS),
    )
    world = FloodWorld({"model": run}, workers=workers, seed=seed)
    world.warm_up()
    world.run([good, flood], 20 * long)
    assert world.outcomes["good"].ratio >= SHARE, f"{good}, {flood}: {world.outcomes}"
    assert world.idle == 0, "no worker is kept free for short runs"
    useful = sum(each.worker_seconds for each in world.outcomes.values())
    assert useful >= GOODPUT * world.busy, world.outcomes


@pytest.mark.slow
def test_callers_that_all_want_more_get_the_same() -> None:
    world = FloodWorld({"model": 0.025})
    world.warm_up()
    kinds = [
        FloodKind("few", 100, 2.0),
        FloodKind("many", 400, 60.0),
        FloodKind("bundles", 20, 60.0, pictures=16),
    ]
    world.run(kinds, 60)
    shares = [each.worker_seconds for each in world.outcomes.values()]
    assert min(shares) >= 0.8 * max(shares), world.outcomes


@pytest.mark.slow
def test_a_weight_of_three_is_three_times_as_much() -> None:
    world = FloodWorld({"model": 0.025})
    world.warm_up()
    world.run([FloodKind("light", 200, 5.0), FloodKind("heavy", 200, 5.0, weight=3.0)], 60)
    light, heavy = (world.outcomes[name].worker_seconds for name in ("light", "heavy"))
    assert heavy == pytest.approx(3 * light, rel=0.15)


@pytest.mark.slow
def test_what_one_caller_leaves_is_the_other_s() -> None:
    world = FloodWorld({"model": 0.025})
    world.warm_up()
    world.run([FloodKind("little", 8, 5.0), FloodKind("flood", 400, 5.0)], 60)
    assert world.outcomes["little"].ratio >= SHARE
    assert world.busy >= 0.97 * 2 * 60  # work conserving


@pytest.mark.parametrize("seed", range(20))
def test_who_is_admitted_is_in_time_or_told_at_once(seed: int) -> None:
    """Runs take what they are known to, so next to nothing is found late when its turn comes."""
    chance = random.Random(seed)
    world = FloodWorld({"model": 0.05}, workers=1, seed=seed, noise=0.0)
    world.warm_up()
    kinds = [
        FloodKind(
            f"caller{number}",
            rate=chance.choice((2, 10, 40)),
            deadline=chance.choice((0.2, 0.5, 1.0, 5.0)),
            identities=chance.choice((1, 3)),
            weight=chance.choice((1.0, 2.0)),
        )
        for number in range(chance.randint(1, 4))
    ]
    world.run(kinds, 20)
    for outcome in world.outcomes.values():
        found_late = outcome.reasons["late"] + outcome.reasons["answered late"]
        assert found_late <= 0.01 * outcome.asked, outcome
