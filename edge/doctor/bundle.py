"""A support bundle: an archive of what somebody needs who is to help, without secrets."""

import io
import json
import os
import tarfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from edge.doctor import facts, scrape
from edge.doctor.finding import Finding
from edge.doctor.log_tail import TAIL_BYTES
from edge.settings import EdgeSettings
from servicekit.distribution import version
from servicekit.durable import take_name
from servicekit.redaction import MASK, Redactor
from servicekit.settings import Settings

_README = """\
Support bundle of Sightline {version}, made by `sightline doctor --bundle` at {time}.

{members}

Secrets are replaced by {mask}: settings that are secrets, the content of files of keys, passwords
and tokens of addresses, API keys, JSON web tokens, private keys, headers with credentials, and
values that are named like a secret. There are no images, no predictions and no labels of
predictions in it.

What stays: addresses and names of hosts, devices, models, classes, sources and files, and in the
tails of log files whatever a program wrote there that does not look like a secret. Read it before
you send it.
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the bundle."""

    name: str
    """Path in the archive."""
    about: str
    """Content, in a few words."""
    text: str
    """Without secrets."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a bundle."""

    settings: Mapping[str, Settings | str]
    """By part: the settings, or the sentence that says why they cannot be used."""
    findings: Sequence[Finding]
    """Of every check."""
    logs: Mapping[Path, str]
    """Tails of log files."""
    ports: Sequence[str]
    """Further metrics ports, host:port."""
    timeout: float
    """Seconds for each request."""

    @property
    def parts(self) -> list[Settings]:
        """The settings that are usable."""
        return [one for one in self.settings.values() if isinstance(one, Settings)]


def members(subject: Subject, redactor: Redactor) -> list[Member]:
    """Return the files of a bundle; the first one says what the others are."""
    found = [*_documents(subject, redactor), *_metrics(subject, redactor)]
    for number, (path, text) in enumerate(subject.logs.items(), 1):
        name = redactor.text(f"logs/{number}-{path.name}")
        about = f"the last lines of a log file, at most {TAIL_BYTES >> 20} MiB"
        found.append(Member(name, about, redactor.text(text)))
    width = max(len(member.name) for member in found)
    readme = _README.format(
        version=version(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        members="\n".join(f"{member.name:{width}}  {member.about}" for member in found),
        mask=MASK,
    )
    return [Member("README.txt", "what is in it, and what is not", readme), *found]


def write(path: Path, files: Sequence[Member]) -> None:
    """Write the archive with mode 600: the whole of it, or nothing.

    Raises:
        FileExistsError: the path exists; it is not touched.
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for member in files:
                    data = member.text.encode(errors="replace")
                    entry = tarfile.TarInfo(f"sightline-bundle/{member.name}")
                    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                    archive.addfile(entry, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        take_name(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


def _documents(subject: Subject, redactor: Redactor) -> Iterator[Member]:
    edge = subject.settings.get("edge")
    usable = edge if isinstance(edge, EdgeSettings) else None
    documents: Iterable[tuple[str, str, Callable[[], JsonValue]]] = (
        ("findings", "findings of every check of the doctor", lambda: _findings(subject)),
        ("settings", "settings in effect, and names of variables", lambda: _settings(subject)),
        ("versions", "versions of Sightline, Python and packages", facts.versions),
        ("machine", "operating system, time, CPUs and memory", facts.machine_facts),
        ("disks", "sizes of files, and free space", lambda: facts.disks(subject.parts)),
        (
            "health",
            "answers of the services to a health check",
            lambda: facts.healths(usable, subject.timeout) if usable else None,
        ),
        (
            "spools",
            "sizes and counts of the device's spools",
            lambda: facts.spools(facts.spool_folder(usable)) if usable else None,
        ),
    )
    for name, about, collect in documents:
        value = redactor.json(_or_error(collect))
        yield Member(f"{name}.json", about, json.dumps(value, indent=2) + "\n")


def _metrics(subject: Subject, redactor: Redactor) -> Iterator[Member]:
    ports = scrape.ports(subject.parts)
    ports |= {f"port-{number}": address for number, address in enumerate(subject.ports, 1)}
    for name, address in ports.items():
        for path, about in (("metrics", "metrics"), ("readyz", "answer to a readiness probe")):
            try:
                text = scrape.get(address, f"/{path}", subject.timeout)
            except (OSError, ValueError) as error:  # no answer, or no HTTP
                text = f"error: {address}: {error}\n"
            yield Member(f"{path}/{name}.txt", f"{about} of {address}", redactor.text(text))


def _findings(subject: Subject) -> JsonValue:
    return [asdict(finding) for finding in subject.findings]


def _settings(subject: Subject) -> JsonValue:
    parts: dict[str, JsonValue] = {
        name: {"error": settings} if isinstance(settings, str) else facts.effective(settings)
        for name, settings in subject.settings.items()
    }
    return {**parts, "variables": facts.variables()}


def _or_error(collect: Callable[[], JsonValue]) -> JsonValue:
    """Return what was collected, or the error: what is broken must not prevent a bundle."""
    try:
        return collect()
    except Exception as error:  # noqa: BLE001 - the bundle is about what nobody has foreseen
        return {"error": f"{type(error).__name__}: {error}"}
