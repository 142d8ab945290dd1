"""The machine as this process sees it: memory, CPU and disk, measured at scrape, within the limits of the container."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS: Final = Path("/proc/self/cgroup")

MIN_CPU_INTERVAL: Final = 0.1
"""Seconds between two readings of the CPU below which the last percentage is given again."""

NANOSECONDS: Final = 1e9
MICROSECONDS: Final = 1e6


class CpuUse(NamedTuple):
    """Seconds of CPU time used so far, and how many seconds of it one second of wall time allows."""

    used: float
    cores: float


class Cgroup:
    """The control groups that this process is in, version 1 or 2, read from the files under `root`.

    A limit may stand at any group from ours up to the root: the lowest one counts, with the use of its group.
    """

    def __init__(self, root: Path = CGROUP_ROOT, membership: Path = CGROUP_OF_PROCESS) -> None:
        self._root = root
        self._paths = _read_membership(membership)

    def memory(self, total: float) -> float | None:
        """Return the working set in bytes (use less inactive file pages), or None without a limit below `total`."""
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
        _, group, usage, inactive = min(limits, key=lambda found: found[0])
        used = _read_number(group / usage)
        if used is None:
            return None
        return max(0.0, used - _read_stat(group / "memory.stat").get(inactive, 0.0))

    def cpu(self) -> CpuUse | None:
        """Return the use of the group with the lowest CPU quota, or None without a quota."""
        quotas = [
            *((quota, group, True) for group in self._groups("") if (quota := _quota_v2(group)) is not None),
            *((quota, group, False) for group in self._groups("cpu") if (quota := _quota_v1(group)) is not None),
        ]
        if not quotas:
            return None
        cores, group, unified = min(quotas, key=lambda found: found[0])
        if unified:
            used = _read_stat(group / "cpu.stat").get("usage_usec")
            return None if used is None else CpuUse(used / MICROSECONDS, cores)
        depth = self._groups("cpu").index(group)
        accounts = self._groups("cpuacct")
        used = _read_number(accounts[min(depth, len(accounts) - 1)] / "cpuacct.usage") if accounts else None
        return None if used is None else CpuUse(used / NANOSECONDS, cores)

    def _groups(self, controller: str) -> list[Path]:
        """Return the groups of a controller from ours up to the root; `""` is version 2.

        A path that is not there was written by a host whose groups this container does not see: its own group is
        mounted as the root.
        """
        path = self._paths.get(controller)
        if path is None:
            return []
        root = self._root / controller
        ours = root / path.lstrip("/")
        return [group for group in (ours, *ours.parents) if group.is_relative_to(root) and group.is_dir()]


def _read_membership(path: Path) -> dict[str, str]:
    """Read `/proc/<pid>/cgroup`: the path by controller, `""` for version 2."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    split = (line.split(":", 2) for line in lines)
    return {controller: path for _, controllers, path in split for controller in controllers.split(",")}


def _read_number(path: Path) -> float | None:
    """Read a file of one number; None if there is no such file or it says `max`."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _read_stat(path: Path) -> dict[str, float]:
    """Read a file of lines `name number`."""
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


def machine_cpu() -> CpuUse:
    """Return the use of the CPUs that this process may run on (its affinity), by whatever runs there."""
    import psutil  # noqa: PLC0415 - not needed to import the package

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    times = [cpu for index, cpu in enumerate(psutil.cpu_times(percpu=True)) if allowed is None or index in allowed]
    return CpuUse(sum(_busy(cpu._asdict()) for cpu in times), float(len(times)))


def _busy(times: dict[str, float]) -> float:
    """Add up what is not idle; Linux counts the time of guests in `user` already."""
    return sum(seconds for name, seconds in times.items() if name not in {"idle", "iowait", "guest", "guest_nice"})


class CpuMeter:
    """Percent of the allowed CPU time, between two readings of `read`; the first is taken at construction."""

    def __init__(self, read: Callable[[], CpuUse], clock: Callable[[], float] = monotonic) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._then = clock()
        self._before = read()
        self._percent = 0.0

    def percent(self) -> float:
        """Return 0 to 100; readings that follow too closely give the last percentage again."""
        with self._lock:
            now = self._clock()
            seconds = now - self._then
            if seconds >= MIN_CPU_INTERVAL:
                use = self._read()
                share = (use.used - self._before.used) / (seconds * use.cores)
                self._percent = min(100.0, max(0.0, 100.0 * share))
                self._then, self._before = now, use
            return self._percent


class SystemCollector:
    """Reads the system at each scrape.

    `memory_usage_bytes`: the working set of the container where a cgroup limit applies, else the memory of the
    machine that is in use. `cpu_usage_percent`: 0 to 100 of the CPU time that this container may use, since the last
    reading. `disk_usage_bytes`: used bytes of the file system at each of `settings.disk_paths`. Beside them stand
    prometheus_client's `process_*`.
    """

    def __init__(self, settings: ObserveSettings, faults: InternalErrors, cgroup: Cgroup | None = None) -> None:
        self._paths = settings.disk_paths
        self._faults = faults
        self._cgroup = cgroup or Cgroup()
        self._process = ProcessCollector(registry=None)
        self._cpu = CpuMeter(self._read_cpu)

    def update(self) -> None:
        """Take a reading now, so that the next scrape's CPU percentage starts here."""
        self._cpu.percent()

    def describe(self) -> list[Metric]:
        """Name what `collect` yields, without reading anything."""
        return [_memory(), _cpu(), _disk()]

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        memory = _memory()
        memory.add_metric([], self._read_memory())
        yield memory
        cpu = _cpu()
        cpu.add_metric([], self._cpu.percent())
        yield cpu
        disk = _disk()
        for path, used in self._read_disks():
            disk.add_metric([path], used)
        yield disk
        yield from self._process.collect()

    def _read_memory(self) -> float:
        import psutil  # noqa: PLC0415 - not needed to import the package

        machine = psutil.virtual_memory()
        limited = self._cgroup.memory(machine.total)
        return float(machine.total - machine.available) if limited is None else limited

    def _read_cpu(self) -> CpuUse:
        limited = self._cgroup.cpu()
        return machine_cpu() if limited is None else limited

    def _read_disks(self) -> Iterable[tuple[str, float]]:
        for path in self._paths:
            try:
                yield path, float(shutil.disk_usage(path).used)
            except OSError as exc:
                self._faults("disk_usage", exc)


def _memory() -> GaugeMetricFamily:
    return GaugeMetricFamily("memory_usage_bytes", "Memory in use: of the container if it is limited, else in all.")


def _cpu() -> GaugeMetricFamily:
    return GaugeMetricFamily("cpu_usage_percent", "CPU time in use, in percent of what this container may use.")


def _disk() -> GaugeMetricFamily:
    return GaugeMetricFamily("disk_usage_bytes", "Used bytes of the file system at the path.", labels=["path"])
