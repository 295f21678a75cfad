"""Item 12: tests of real nodes whose spool folder is restored from a backup, or cloned."""

import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.spool.superblock import FILE_NAME as MARK
from edge.spool.superblock import SuperblockFile, location_of
from tests.faults.campaign import Campaign
from tests.faults.nodes import Node, drain
from tests.faults.world import WORLDS, World, campaign, several

pytestmark = pytest.mark.timeout(900)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
OFFLINE = "unix:/nowhere/at/all"
WAYS = ("over the files", "over the files of a killed node", "anew", "without the mark", "twins")


def copy(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, as `cp` would copy them."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith((".lock", "-shm"))
    }


def put_back(folder: Path, files: dict[str, bytes], *, keep_mark: bool = False) -> None:
    """Write into the existing files, which keep their inodes, and remove the others."""
    for file in [*folder.rglob("*")]:
        stays = keep_mark and file.name == MARK
        if file.is_file() and file.relative_to(folder).as_posix() not in files and not stays:
            file.unlink()
    for name, data in files.items():
        if keep_mark and name == MARK:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def clone(folder: Path, target: Path) -> None:
    """Copy a folder as in a disk image of the machine, so that nothing shows that it is a copy."""
    shutil.copytree(folder, target)
    superblock_file = SuperblockFile(target)
    superblock = superblock_file.read()
    if superblock is not None:
        superblock_file.write(replace(superblock, location=location_of(target / "spool.db")))
    superblock_file.close()


def live(world: World, spool: str, name: str, *, offline: bool, killed: bool = True) -> None:
    """Run one life of a node on a spool."""
    more = {"target": OFFLINE} if offline else {}
    spec = world.spec(f"{spool}-{name}", spool, predictions=None if killed else 40, **more)
    node = Node(spec)
    if not killed:
        node.wait()
        return
    node.wait_until_it_logs()
    time.sleep(world.chance.uniform(0.0, 0.3))
    node.kill()


def lose_the_time_between(world: World, number: int) -> list[str]:
    """Back up a spool with much pending, go on, and restore the backup."""
    chance, spool = world.chance, f"spool{number}"
    way = WAYS[number % len(WAYS)]
    folder = world.folder / spool
    for life in range(chance.randint(1, 2)):
        live(world, spool, f"before{life}", offline=True)
    files = copy(folder)
    if way == "twins":
        return go_on_twice(world, spool)
    live(world, spool, "between", offline=False, killed=chance.random() < 0.5)
    drain(world.spec("drain", spool))  # everything that is overwritten is committed
    if way == "over the files of a killed node":
        node = Node(world.spec(f"{spool}-idle", spool, predictions=0))
        node.kill()
    if way == "anew":
        shutil.rmtree(folder)
    put_back(folder, files, keep_mark=way == "without the mark")
    for life in range(chance.randint(0, 3)):
        live(world, spool, f"offline{life}", offline=True)
    live(world, spool, "after", offline=False)
    if chance.random() < 0.3:  # and once more: committed predictions must not be stored again
        drain(world.spec("drain", spool))
        put_back(folder, files)
        live(world, spool, "again", offline=chance.random() < 0.5)
    return [spool]


def go_on_twice(world: World, spool: str) -> list[str]:
    """Run two machines on copies of one spool, at once or one after the other."""
    twin = f"{spool}twin"
    clone(world.folder / spool, world.folder / twin)
    both = [spool, twin]
    world.chance.shuffle(both)
    if world.chance.random() < 0.5:
        for life in range(2):
            for spool in both:
                live(world, spool, f"turn{life}", offline=world.chance.random() < 0.4)
        return both
    chances = [random.Random(world.chance.random()) for _ in both]

    def run(spool: str, chance: random.Random) -> None:
        for life in range(2):
            node = Node(world.spec(f"{spool}-turn{life}", spool))
            node.wait_until_it_logs()
            time.sleep(chance.uniform(0.0, 0.3))
            node.kill()

    threads = [threading.Thread(target=run, args=pair) for pair in zip(both, chances, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return both


@pytest.mark.parametrize("runs", [8, pytest.param(200, marks=SOAK)])
def test_spools_that_are_put_back(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that no spooled prediction is lost or stored twice, whatever is restored."""

    def fault(world: World, count: int) -> object:
        world.ingest.start()
        first = world.chance.randrange(len(WAYS))
        spools: list[str] = []
        for number in range(first, first + count):
            spools += lose_the_time_between(world, number)
        # The superblock, if it was not restored, may show the end of the log as lost.
        counts = world.finish([*spools, *spools], are_damaged=True)
        assert counts.doubled == 0, counts
        assert counts.missing <= counts.gap_sequences, counts
        return counts

    audits = several(fault, tmp_path, runs)  # type: ignore[arg-type]
    report(campaign("a spool is put back or cloned", runs // WORLDS * WORLDS, audits))
