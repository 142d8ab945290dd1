"""Holds the readings of memory, CPU and disks, within the limits of the container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from prometheus_client import CollectorRegistry

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.system import (
    Cgroup,
    CpuMeter,
    CpuUse,
    SystemCollector,
    host_cpu,
)
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from pathlib import Path

HOST_MEMORY = 16e9


def _cgroup(root: Path, membership: str, files: dict[str, str]) -> Cgroup:
    for name, text in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "membership").write_text(membership)
    return Cgroup(root / "fs", root / "membership")


V2 = {
    "memory.max": "1000000\n",
    "memory.current": "600000\n",
    "memory.stat": "anon 400000\ninactive_file 150000\nactive_file 50000\n",
    "cpu.max": "150000 100000\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\n",
}
V1 = {
    "memory/memory.limit_in_bytes": "1000000\n",
    "memory/memory.usage_in_bytes": "600000\n",
    "memory/memory.stat": "cache 1\ninactive_file 1\ntotal_inactive_file 150000\n",
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpuacct/cpuacct.usage": "2500000000\n",
}
V1_MEMBERSHIP = "5:cpu,cpuacct:/\n4:memory:/\n1:name=systemd:/\n0::/\n"


@pytest.mark.parametrize(("files", "membership"), [(V2, "0::/\n"), (V1, V1_MEMBERSHIP)])
def test_limits_of_a_container_are_read(tmp_path: Path, files: dict[str, str], membership: str) -> None:
    """Memory is usage minus inactive file pages; CPU is the usage of the group and its quota in cores."""
    cgroup = _cgroup(tmp_path, membership, files)
    assert cgroup.memory(HOST_MEMORY) == 450_000
    assert cgroup.cpu() == CpuUse(used=2.5, cores=1.5)


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({}, ""),
        ({**V2, "memory.max": "max\n", "cpu.max": "max 100000\n"}, "0::/\n"),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n", "cpu/cpu.cfs_quota_us": "-1\n"}, V1_MEMBERSHIP),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1_MEMBERSHIP),
        ({"memory.max": "garbage", "cpu.max": "garbage"}, "0::/\n"),
        ({"memory.max": "", "cpu.max": "1 0"}, "0::/\n"),
    ],
)
def test_without_a_limit_there_is_no_reading(tmp_path: Path, files: dict[str, str], membership: str) -> None:
    """Without files or a limit, with a limit beyond the memory of the host, or with unreadable files: None."""
    cgroup = _cgroup(tmp_path, membership, files)
    assert cgroup.memory(HOST_MEMORY) is None
    assert cgroup.cpu() is None


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({"memory.max": "1000000", "cpu.max": "1 1", "cpu.stat": "broken"}, "0::/\n"),
        (
            {
                "memory/memory.limit_in_bytes": "1000000",
                "cpu/cpu.cfs_quota_us": "1",
                "cpu/cpu.cfs_period_us": "1",
            },
            V1_MEMBERSHIP,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "1000000",
                "cpu/cpu.cfs_quota_us": "1",
                "cpu/cpu.cfs_period_us": "1",
                "cpuacct/tasks": "",
            },
            V1_MEMBERSHIP,
        ),
    ],
)
def test_a_limit_without_usage_is_no_reading(tmp_path: Path, files: dict[str, str], membership: str) -> None:
    """If the usage of the limited group cannot be read, the reading is None."""
    cgroup = _cgroup(tmp_path, membership, files)
    assert cgroup.memory(HOST_MEMORY) is None
    assert cgroup.cpu() is None


def test_the_lowest_limit_of_all_parent_groups_applies(tmp_path: Path) -> None:
    """If a parent group has the limit, its usage is compared with it."""
    files = {f"slice/app/{name}": text for name, text in V2.items()}
    files |= {
        "slice/memory.max": "700000",
        "slice/memory.current": "650000",
        "slice/cpu.max": "50000 100000",
        "slice/cpu.stat": "usage_usec 9000000",
    }
    cgroup = _cgroup(tmp_path, "0::/slice/app\n", files)
    assert cgroup.memory(HOST_MEMORY) == 650_000
    assert cgroup.cpu() == CpuUse(used=9.0, cores=0.5)


def test_a_path_of_the_host_means_the_root(tmp_path: Path) -> None:
    """A version 1 path that does not exist in the container is that of the host; the root is the container's group."""
    membership = V1_MEMBERSHIP.replace(":/\n", ":/docker/0123abc\n")
    cgroup = _cgroup(tmp_path, membership, V1)
    assert cgroup.memory(HOST_MEMORY) == 450_000
    assert cgroup.cpu() == CpuUse(used=2.5, cores=1.5)


def test_a_host_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    """Without the membership file there is no limit."""
    cgroup = Cgroup(tmp_path, tmp_path / "missing")
    assert cgroup.memory(HOST_MEMORY) is None
    assert cgroup.cpu() is None


def test_cpu_usage_is_relative_to_the_allowed_time() -> None:
    """Half a second of CPU time in two seconds on half a core is 50 percent."""
    now, used = [0.0], [10.0]
    meter = CpuMeter(lambda: CpuUse(used[0], 0.5), lambda: now[0])
    now[0], used[0] = 2.0, 10.5
    assert meter.percent() == 50
    now[0], used[0] = 2.05, 11.0
    assert meter.percent() == 50, "too soon for a new reading"
    now[0] = 3.0
    assert meter.percent() == 100, "never more than 100"
    now[0], used[0] = 4.0, 0.0
    assert meter.percent() == 0, "a counter that went back"


def test_the_cpu_usage_of_the_host_is_that_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the CPUs that this process may run on count, or all of them without an affinity."""
    use = host_cpu()
    assert use.cores == len(os.sched_getaffinity(0))
    assert use.used > 0
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host_cpu().cores == psutil.cpu_count()


def _read(registry: CollectorRegistry, name: str, **labels: str) -> Any:
    return registry.get_sample_value(name, labels)


def test_a_scrape_reads_the_system(tmp_path: Path) -> None:
    """Memory, CPU and disks are current readings, together with prometheus_client's process metrics."""
    registry = CollectorRegistry()
    settings = ObserveSettings(disk_paths=(str(tmp_path),))
    collector = SystemCollector(settings, InternalErrors())
    registry.register(collector)
    collector.update()
    assert 0 < _read(registry, "memory_usage_bytes") < psutil.virtual_memory().total
    assert 0 <= _read(registry, "cpu_usage_percent") <= 100
    assert _read(registry, "disk_usage_bytes", path=str(tmp_path)) > 0
    assert _read(registry, "process_resident_memory_bytes") > 0


def test_a_container_is_read_instead_of_the_host(tmp_path: Path) -> None:
    """If a cgroup limits memory and CPU, the gauges are those of the container."""
    registry = CollectorRegistry()
    cgroup = _cgroup(tmp_path, "0::/\n", V2)
    registry.register(SystemCollector(ObserveSettings(), InternalErrors(), cgroup))
    assert _read(registry, "memory_usage_bytes") == 450_000
    assert _read(registry, "cpu_usage_percent") == 0


def test_a_path_that_cannot_be_read_is_skipped_and_counted(tmp_path: Path) -> None:
    """A missing disk path has no sample; others are not affected."""
    registry, internal_errors = CollectorRegistry(), InternalErrors()
    missing = str(tmp_path / "missing")
    registry.register(SystemCollector(ObserveSettings(disk_paths=(missing, str(tmp_path))), internal_errors))
    assert _read(registry, "disk_usage_bytes", path=missing) is None
    assert _read(registry, "disk_usage_bytes", path=str(tmp_path)) > 0
    assert internal_errors.counts == {"disk_usage": 2}
