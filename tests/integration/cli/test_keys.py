"""`sightline keys` from the first key to its successor, with a service that takes them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from servicekit.errors import SightlineError
from sightline.cli.app import app
from tests.integration.auth.services import Client, ingest


def keys(file: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["keys", *words, "--file", str(file)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_key_is_replaced_without_locking_the_device_out(tmp_path: Path) -> None:
    file = tmp_path / "keys.db"
    old = json.loads(keys(file, "create", "gate-1", "--json"))
    new = json.loads(
        keys(file, "rotate", old["id"], "--old-ends-in", "12h", "--expires", "90d", "--json")
    )
    assert (new["name"], new["devices"], new["scopes"]) == ("gate-1", ["gate-1"], ["log", "infer"])
    listed = {one["id"]: one for one in json.loads(keys(file, "list", "--json"))}
    assert {one["status"] for one in listed.values()} == {"active"}
    left = datetime.fromisoformat(listed[old["id"]]["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=11) < left <= timedelta(hours=12)
    keys(file, "create", "gate-1")
    keys(file, "revoke", new["id"])
    with ingest(tmp_path, "--api-keys-file", str(file)) as service:
        assert Client(service, old["key"]).watermark("gate-1") == 0
        with pytest.raises(SightlineError) as caught:
            Client(service, new["key"]).watermark("gate-1")
    assert caught.value.reason == "API_KEY_REVOKED"
    statuses = [one["status"] for one in json.loads(keys(file, "list", "--json"))]
    assert sorted(statuses) == ["active", "active", "revoked"]
