"""The CPUs, memory and files of the process, not those of the machine."""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from inference_service.settings import InferenceSettings
from ingest_service.settings import IngestSettings
from ingest_service.store.duckdb.file_store import DuckDBStore
from servicekit import resources
from servicekit.settings import load

V2 = {
    "proc/self/cgroup": "0::/kubepods.slice/pod1/app\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
    "sys/fs/cgroup/kubepods.slice/pod1/app/cpu.max": "max 100000\n",
    "sys/fs/cgroup/kubepods.slice/pod1/app/memory.max": "max\n",
    "sys/fs/cgroup/kubepods.slice/pod1/cpu.max": "50000 100000\n",
    "sys/fs/cgroup/kubepods.slice/pod1/memory.max": "536870912\n",
}
OWN_NAMESPACE = {
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n",
    "sys/fs/cgroup/cpu.max": "100000 100000\n",
    "sys/fs/cgroup/memory.max": "536870912\n",
}
MOUNTED_V1 = (
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 {at} /sys/fs/cgroup/cpu,cpuacct ro,master:11 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {at} /sys/fs/cgroup/memory ro,master:14 - cgroup cgroup rw,memory\n"
    "37 31 0:34 {at} /sys/fs/cgroup/systemd ro,master:9 - cgroup cgroup rw,name=systemd\n"
)
V1 = {
    "proc/self/cgroup": (
        "9:name=systemd:/docker/a1\n5:memory:/docker/a1\n4:cpu,cpuacct:/docker/a1\n0::/\n"
    ),
    "proc/self/mountinfo": MOUNTED_V1.format(at="/"),
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/docker/a1/cpu.cfs_quota_us": "25000\n",
    "sys/fs/cgroup/cpu,cpuacct/docker/a1/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/docker/a1/memory.limit_in_bytes": "536870912\n",
}
DOCKER_V1 = {
    **V1,
    "proc/self/mountinfo": MOUNTED_V1.format(at="/docker/a1"),
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
}
UNLIMITED_V1 = {
    **V1,
    "sys/fs/cgroup/cpu,cpuacct/docker/a1/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/memory/docker/a1/memory.limit_in_bytes": "9223372036854771712\n",
}
ODD = {
    **OWN_NAMESPACE,
    "sys/fs/cgroup/cpu.max": "garbage\n",
    "sys/fs/cgroup/memory.max": "",
}
OPTIONS = "runtime_options(SessionOptions())"
ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("files", [V2, OWN_NAMESPACE, V1, DOCKER_V1])
def test_limits_of_control_groups(tmp_path: Path, files: Mapping[str, str]) -> None:
    root = laid_out(tmp_path, files)
    assert resources.cpus(root) == 1
    assert resources.memory_limit(root) == resources.memory(root) == 512 << 20


@pytest.mark.parametrize("files", [{}, UNLIMITED_V1, ODD])
def test_no_limit(tmp_path: Path, files: Mapping[str, str]) -> None:
    root = laid_out(tmp_path, files)
    assert resources.cpus(root) == ALL
    assert resources.memory_limit(root) is None
    assert resources.memory(root) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.skipif(ALL < 2, reason="needs two CPUs")
@pytest.mark.parametrize(("quota", "count"), [("100001", 2), ("900000", ALL), ("0", 1)])
def test_a_quota_is_rounded_up(tmp_path: Path, quota: str, count: int) -> None:
    files = {**OWN_NAMESPACE, "sys/fs/cgroup/cpu.max": f"{quota} 100000"}
    assert resources.cpus(laid_out(tmp_path, files)) == count


@pytest.mark.skipif(ALL < 2, reason="needs two CPUs")
@pytest.mark.parametrize(
    "program",
    [
        "from servicekit.resources import cpus; print(cpus())",
        "from inference_service.settings import InferenceSettings as S; print(S().workers)",
        f"from vision.session_options import *; print({OPTIONS}.intra_op_num_threads)",
        "import inference_service.pipeline as p; print(p._CHECK_THREADS - 1)",
        "import sightline.cli.models as m; print(m._runtime('A').session.intra_op_threads)",
        "from edge.doctor.machine import machine; print(machine().message.split()[4])",
    ],
)
def test_a_process_with_one_cpu(tmp_path: Path, program: str) -> None:
    one = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        ["taskset", "-c", one, sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "1\n"


def test_the_limit_on_open_files_is_raised_as_far_as_it_may() -> None:
    program = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 256))\n"
        "from servicekit.resources import allow_open_files as allow\n"
        "print(allow(32), allow(100), allow(1000), r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "64 100 256 (256, 256)\n"


def test_defaults_fit_into_the_memory_of_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = resources.memory_limit(laid_out(tmp_path, V2))
    monkeypatch.setattr(resources, "memory_limit", lambda root=None: limit)
    monkeypatch.chdir(tmp_path)
    assert load(InferenceSettings, [], prog="test").bytes_in_flight == 128 << 20
    large = load(IngestSettings, [f"--max-message-bytes={256 << 20}"], prog="test")
    assert large.bytes_in_flight == 256 << 20
    with closing(DuckDBStore(tmp_path / "sightline.duckdb")) as store:
        assert store._root is not None
        cursor = store._root.cursor().execute("SELECT current_setting('memory_limit')")
        assert cursor.fetchone() == ("256.0 MiB",)


def laid_out(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
