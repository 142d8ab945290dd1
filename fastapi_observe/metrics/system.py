"""Memory, CPU and disk usage of the container, or of the host if the container has no limits."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily

from fastapi_observe.internal.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS: Final = Path("/proc/self/cgroup")

MIN_CPU_INTERVAL: Final = 0.1
"""Seconds between two readings of CPU usage; a scrape that is earlier gets the last percentage again."""

NANOSECONDS: Final = 1e9
MICROSECONDS: Final = 1e6


class CpuUse(NamedTuple):
    """CPU seconds used since the start, and CPU seconds that may be used per second."""

    used: float
    cores: float


class Cgroup:
    """The control groups of this process, version 1 or 2, read from the files under `root`.

    Any group from that of the process up to the root may have a limit. The lowest limit applies, with the usage of its
    group.
    """

    def __init__(self, root: Path = CGROUP_ROOT, membership: Path = CGROUP_OF_PROCESS) -> None:
        self._root = root
        self._paths = _read_membership(membership)

    def memory(self, total: float) -> float | None:
        """Return the working set in bytes (usage minus inactive file pages), or None without a limit below `total`."""
        limits = [
            (limit, group, usage, inactive)
            for controller, files in (
                ("", ("memory.max", "memory.current", "inactive_file")),
                ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
            )
            for group in self._groups(controller)
            for maximum, usage, inactive in (files,)
            if (limit := _read_number(group / maximum)) is not None and limit < total
        ]
        if not limits:
            return None
        _, group, usage, inactive = min(limits, key=lambda limit: limit[0])
        used = _read_number(group / usage)
        if used is None:
            return None
        return max(0.0, used - _read_stat(group / "memory.stat").get(inactive, 0.0))

    def cpu(self) -> CpuUse | None:
        """Return the usage of the group with the lowest CPU quota, or None without a quota."""
        quotas = [
            *((quota, group, True) for group in self._groups("") if (quota := _quota_v2(group)) is not None),
            *((quota, group, False) for group in self._groups("cpu") if (quota := _quota_v1(group)) is not None),
        ]
        if not quotas:
            return None
        cores, group, unified = min(quotas, key=lambda limit: limit[0])
        if unified:
            used = _read_stat(group / "cpu.stat").get("usage_usec")
            return None if used is None else CpuUse(used / MICROSECONDS, cores)
        depth = self._groups("cpu").index(group)
        accounts = self._groups("cpuacct")
        used = _read_number(accounts[min(depth, len(accounts) - 1)] / "cpuacct.usage") if accounts else None
        return None if used is None else CpuUse(used / NANOSECONDS, cores)

    def _groups(self, controller: str) -> list[Path]:
        """Return the groups of a controller from that of the process up to the root; `""` is version 2.

        In a container the path may be that of the host, which does not exist here: then the container's group is
        mounted as the root.
        """
        path = self._paths.get(controller)
        if path is None:
            return []
        root = self._root / controller
        own = root / path.lstrip("/")
        return [group for group in (own, *own.parents) if group.is_relative_to(root) and group.is_dir()]


def _read_membership(path: Path) -> dict[str, str]:
    """Return the paths in `/proc/<pid>/cgroup` by controller, `""` for version 2."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    split = (line.split(":", 2) for line in lines)
    return {controller: path for _, controllers, path in split for controller in controllers.split(",")}


def _read_number(path: Path) -> float | None:
    """Return the number in a file; None if there is no file or it contains `max`."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _read_stat(path: Path) -> dict[str, float]:
    """Return the numbers in a file of lines `name number`, by name."""
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return {name: float(number) for name, number in pairs}
    except (OSError, ValueError):
        return {}


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(group: Path) -> float | None:
    quota, period = _read_number(group / "cpu.cfs_quota_us"), _read_number(group / "cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def host_cpu() -> CpuUse:
    """Return the usage of the CPUs that this process may run on (its affinity), by all processes."""
    import psutil  # noqa: PLC0415 - not needed to import the package

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    times = [cpu for index, cpu in enumerate(psutil.cpu_times(percpu=True)) if allowed is None or index in allowed]
    return CpuUse(sum(_busy(cpu._asdict()) for cpu in times), float(len(times)))


def _busy(times: dict[str, float]) -> float:
    """Return the sum of all times but the idle ones. On Linux, `user` includes the time of guests."""
    return sum(seconds for name, seconds in times.items() if name not in {"idle", "iowait", "guest", "guest_nice"})


class CpuMeter:
    """Measures CPU usage between two calls of `read`, in percent of the allowed CPU time."""

    def __init__(self, read: Callable[[], CpuUse], clock: Callable[[], float] = monotonic) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._last_time = clock()
        self._last_use = read()
        self._percent = 0.0

    def percent(self) -> float:
        """Return 0 to 100. Within `MIN_CPU_INTERVAL` of the last reading, return the last percentage again."""
        with self._lock:
            now = self._clock()
            seconds = now - self._last_time
            if seconds >= MIN_CPU_INTERVAL:
                use = self._read()
                fraction = (use.used - self._last_use.used) / (seconds * use.cores)
                self._percent = min(100.0, max(0.0, 100.0 * fraction))
                self._last_time, self._last_use = now, use
            return self._percent


class SystemCollector:
    """Reads the system at each scrape.

    `memory_usage_bytes`: the working set of the container if it has a memory limit, else the memory in use on the
    host. `cpu_usage_percent`: 0 to 100 percent of the CPU time that the container may use, since the last scrape.
    `disk_usage_bytes`: used bytes of the file system at each of `settings.disk_paths`. In addition, prometheus_client's
    `process_*`.
    """

    def __init__(
        self, settings: ObserveSettings, internal_errors: InternalErrors, cgroup: Cgroup | None = None
    ) -> None:
        self._paths = settings.disk_paths
        self._internal_errors = internal_errors
        self._cgroup = cgroup or Cgroup()
        self._process = ProcessCollector(registry=None)
        self._cpu = CpuMeter(self._read_cpu)

    def update(self) -> None:
        """Read CPU usage now, so that the percentage of the next scrape starts here."""
        self._cpu.percent()

    def describe(self) -> list[Metric]:
        """Return the families that `collect` yields, without reading the system."""
        return [_memory_family(), _cpu_family(), _disk_family()]

    def collect(self) -> Iterator[Metric]:
        """Yield the families with their values now."""
        memory = _memory_family()
        memory.add_metric([], self._read_memory())
        yield memory
        cpu = _cpu_family()
        cpu.add_metric([], self._cpu.percent())
        yield cpu
        disk = _disk_family()
        for path, used in self._read_disks():
            disk.add_metric([path], used)
        yield disk
        yield from self._process.collect()

    def _read_memory(self) -> float:
        import psutil  # noqa: PLC0415 - not needed to import the package

        host = psutil.virtual_memory()
        working_set = self._cgroup.memory(host.total)
        return float(host.total - host.available) if working_set is None else working_set

    def _read_cpu(self) -> CpuUse:
        use = self._cgroup.cpu()
        return host_cpu() if use is None else use

    def _read_disks(self) -> Iterable[tuple[str, float]]:
        for path in self._paths:
            try:
                yield path, float(shutil.disk_usage(path).used)
            except OSError as exc:
                self._internal_errors("disk_usage", exc)


def _memory_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "memory_usage_bytes", "Memory used by the container, or by the host if the container has no limit."
    )


def _cpu_family() -> GaugeMetricFamily:
    return GaugeMetricFamily("cpu_usage_percent", "CPU time used, in percent of what the container may use.")


def _disk_family() -> GaugeMetricFamily:
    return GaugeMetricFamily("disk_usage_bytes", "Used bytes of the file system at this path.", labels=["path"])
