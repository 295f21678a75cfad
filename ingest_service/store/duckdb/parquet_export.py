"""Export of stored predictions to Parquet files by day and device, each to exactly one file.

An export run covers whole blocks. It is first inserted into `exports`, then written under temporary
names, moved into place, and marked as finished. An interrupted run is repeated with the same blocks
and the same file names.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import duckdb
import pyarrow as pa

from servicekit.private_files import make_shared_folder, share

RUN_PREDICTIONS = 1_000_000
"""Approximate number of predictions in one run."""
UNFINISHED = ".unfinished"
"""Subfolder of the export folder for files that are being written."""
_LONGEST_NAME = 200
"""Maximum bytes of a device id in a folder's name; file systems allow 255 in all."""

_BEGUN = """
    SELECT epoch_us(after), epoch_us(through) FROM exports WHERE finished_at IS NULL
"""
_NEXT = f"""
    SELECT epoch_us(min(after)), epoch_us(max(through)) FROM (
        SELECT after, through,
            sum(predictions) OVER (ORDER BY through) - predictions AS before
        FROM blocks WHERE through > (SELECT coalesce(max(through), '-infinity') FROM exports)
    )
    WHERE before < {RUN_PREDICTIONS}
"""
_DONE = "SELECT epoch_us(max(through)) FROM exports"
_BEGIN = """
    INSERT INTO exports
    VALUES (make_timestamptz($after), make_timestamptz($through), make_timestamptz($now), NULL)
"""
_FINISH = """
    UPDATE exports SET finished_at = make_timestamptz($now)
    WHERE after = make_timestamptz($after) AND through = make_timestamptz($through)
"""
_ROWS = "received_at > make_timestamptz({after}) AND received_at <= make_timestamptz({through})"
_COPY = f"""
    COPY (
        SELECT p.*, make_timestamp(epoch_us(captured_at))::DATE AS day, number
        FROM predictions_with_shapes AS p JOIN devices USING (device_id) WHERE {_ROWS}
    )
    TO '{{folder}}' (
        FORMAT parquet, COMPRESSION zstd, PARTITION_BY (day, number), FILE_EXTENSION 'tmp'
    )
"""


class ExportRun(NamedTuple):
    """The commits of one export: after < received_at <= through, us since 1970."""

    after: int
    through: int


def begin_run(cursor: duckdb.DuckDBPyConnection, now_us: int) -> tuple[ExportRun | None, bool]:
    """Return the next run, and True if it was begun before; None: all blocks are exported.

    The open transaction must be committed before the run is written.
    """
    if begun := cursor.execute(_BEGUN).fetchall():
        return ExportRun(*begun[0]), True
    after, through = cursor.execute(_NEXT).fetchall()[0]
    if through is None:
        return None, False
    ((done,),) = cursor.execute(_DONE).fetchall()
    # Blocks may have been merged since: rows of the run before must not be exported twice.
    run = ExportRun(after if done is None else max(after, done), through)
    cursor.execute(_BEGIN, {**run._asdict(), "now": now_us})
    return run, False


def finish_run(cursor: duckdb.DuckDBPyConnection, run: ExportRun, now_us: int) -> None:
    """Mark a run as finished, once its files are in place and durable."""
    cursor.execute(_FINISH, {**run._asdict(), "now": now_us})


def write_run(
    cursor: duckdb.DuckDBPyConnection, folder: Path, run: ExportRun, *, again: bool
) -> Iterator[Path]:
    """Write the files of a run; yield the path of each file when it is in place.

    Args:
        cursor: the connection.
        folder: the folder of the export, created if it is missing.
        run: the commits to export.
        again: True if files of the same run may exist already.
    """
    _make_durably(folder)
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    if again:
        for path in folder.glob(f"day=*/device_id=*/{run.through}-*.parquet"):
            path.unlink()
    devices = _copy(cursor, unfinished, run)
    changed = {folder}
    for path in sorted(unfinished.glob("day=*/number=*/*.tmp")):
        target = _target(folder, path, devices, run)
        make_shared_folder(target.parent)
        share(path)
        _sync(path)
        path.replace(target)
        changed |= {target.parent, target.parent.parent}
        yield target
    for path in changed:
        _sync(path)
    shutil.rmtree(unfinished)


def folder_name(device_id: str) -> str:
    """Return the name of a device's folder: percent-encoded; if too long, cut and hashed."""
    name = quote(device_id, safe="")
    if len(name) > _LONGEST_NAME:
        start = device_id
        while len(name) > _LONGEST_NAME - 17:
            start = start[:-1]
            name = quote(start, safe="")
        name = f"{name}~{hashlib.sha256(device_id.encode()).hexdigest()[:16]}"
    return f"device_id={name}"


def _copy(cursor: duckdb.DuckDBPyConnection, unfinished: Path, run: ExportRun) -> list[str]:
    """Write the rows of a run to one folder for each day and device number.

    Returns:
        The device ids, indexed by number.
    """
    rows = _ROWS.format(**run._asdict())
    query = f"SELECT DISTINCT device_id FROM predictions WHERE {rows} ORDER BY device_id"
    devices = [str(row[0]) for row in cursor.execute(query).fetchall()]
    numbered = pa.table({"device_id": devices, "number": range(len(devices))})
    cursor.register("devices", numbered)
    quoted = str(unfinished).replace("'", "''")
    cursor.execute(_COPY.format(folder=quoted, **run._asdict()))
    return devices


def _target(folder: Path, path: Path, devices: list[str], run: ExportRun) -> Path:
    number = int(path.parent.name.removeprefix("number="))
    day = path.parent.parent.name
    # The number separates devices whose names are equal to the file system, as without case.
    name = f"{run.through}-{number}-{path.stem.removeprefix('data_')}.parquet"
    return folder / day / folder_name(devices[number]) / name


def _make_durably(folder: Path) -> None:
    """Create a folder and its missing parents, and make their entries durable."""
    if folder.is_dir():
        return
    _make_durably(folder.parent)
    make_shared_folder(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    """Make a file or the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
