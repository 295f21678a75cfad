"""Fixtures: the API server of Kubernetes, for all tests of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.cluster import Cluster, running

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools"
SERVER, CONTROLLERS, ADAPTER = (
    TOOLS / "kubernetes" / name
    for name in ("kube-apiserver", "kube-controller-manager", "prometheus-adapter")
)
ETCD = TOOLS / "etcd/usr/bin/etcd"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The API server, without any object of ours."""
    programs = (SERVER, CONTROLLERS, ADAPTER, ETCD)
    if missing := [path.name for path in programs if not path.is_file()]:
        message = f"{missing[0]} is not here: `make kubernetes` builds it, with Go and on Debian"
        if os.environ.get("SIGHTLINE_REQUIRE_COMPAT"):
            pytest.fail(message)
        pytest.skip(message)
    with running(SERVER, ETCD, tmp_path_factory.mktemp("cluster")) as one:
        yield one
