"""Tests that flip, zero or cut off bytes of the spool between two lives of a node."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.ledger import read_lives
from tests.faults.nodes import Node, drain, keep_logging
from tests.faults.world import World, campaign, several
from tests.unit.edge.samples import eventually

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
PAGE = 4096
FILES = ["spool.db", "spool.db-wal", "spool.db-shm", "spool.mark"]
NEW = 60
"""Predictions that are logged after the damage."""
PATIENCE = 300.0
"""Maximum duration of a life on a machine under other load, s."""


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file and return the kind of damage."""
    data = bytearray(path.read_bytes())
    size = len(data)
    start = chance.randrange(size)
    page = start // PAGE * PAGE
    kind = chance.choice(["byte", "byte", "bits", "run", "cut", "page", "header", "empty"])
    if kind == "byte":
        data[start] ^= 1 << chance.randrange(8)
    elif kind == "bits":
        for _ in range(chance.randint(2, 50)):
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == "run":
        end = min(size, start + chance.randint(2, 5000))
        data[start:end] = chance.randbytes(end - start)
    elif kind == "page":
        data[page : page + PAGE] = bytes(min(PAGE, size - page))
    elif kind == "header":
        data[:100] = chance.randbytes(min(100, size))
    else:
        del data[start if kind == "cut" else 0 :]
    path.write_bytes(data)
    return f"{kind} of {path.name} at {start} of {size}"


def leave_something(world: World, number: int) -> None:
    """Let a node leave a spool with predictions, committed or not, closed or not."""
    chance = world.chance
    lives = chance.choice([["away"], ["away"], ["there"], ["there", "away"]])
    for server in lives:
        more = {} if server == "there" else {"target": f"unix:{world.folder}/nowhere"}
        count = chance.choice([20, 200, 200, 2000])
        spec = world.spec(f"old{number}-{server}", f"spool{number}", predictions=count, **more)
        node = Node(spec, keep_logging)
        if chance.random() < 0.7:
            assert eventually((spec.spool / FILES[0]).exists)
            time.sleep(chance.uniform(0.0, 0.5))
            node.kill()
        else:
            node.wait(PATIENCE)


def damage_one(spool: Path, chance: random.Random) -> str:
    """Damage a file of a spool."""
    there = [spool / name for name in FILES if (spool / name).exists()]
    sized = [path for path in there if path.stat().st_size]
    return damage(chance.choice(sized), chance) if sized else "nothing there yet"


def live_on(world: World, number: int) -> None:
    """Run a node on a damaged spool until all of it is committed."""
    away = {"target": f"unix:{world.folder}/nowhere"} if world.chance.random() < 0.5 else {}
    spec = world.spec(f"new{number}", f"spool{number}", predictions=NEW, **away)
    Node(spec, keep_logging).wait(PATIENCE)
    drain(world.spec("drain", spec.spool.name), PATIENCE)


def damage_spools(world: World, runs: int) -> Audit:
    """Damage spools, each between two lives of its node."""
    world.ingest.start()
    done = []
    for number in range(runs):
        leave_something(world, number)
        done.append(damage_one(world.folder / f"spool{number}", world.chance))
        (world.folder / "damage.log").write_text("\n".join(done))
        live_on(world, number)
    spools = [f"spool{number}" for number in range(runs)]
    # Damage of unused bytes is found later or never.
    counts = world.finish(spools, are_damaged=True)
    check_new(world)
    return counts


def check_new(world: World) -> None:
    """Check that all predictions logged after the damage are stored: none was replaced."""
    counted = dict(
        world.ingest.query(
            "SELECT split_part(image_id, '/', 1), count(*) FROM predictions GROUP BY 1"
        )
    )
    for life in read_lives(world.folder):
        if life.name.startswith("new"):
            assert counted[life.name] == life.logs == NEW, life


@pytest.mark.parametrize("runs", [16, pytest.param(400, marks=SOAK)])
def test_a_damaged_spool(tmp_path: Path, report: Report, runs: int) -> None:
    audits = several(damage_spools, tmp_path, runs)
    missing = sum(audit.missing for audit in audits)
    report(campaign("bytes of the spool are damaged", runs, audits, f"{missing} could not be read"))
