"""Description of the machine and the installed versions."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.process import cores

MISSING = "not installed"
"""In place of the version of a package that is missing."""

PACKAGES = (
    "fastapi-observe",
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "uvloop",
    "httptools",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-asgi",
    "opentelemetry-instrumentation-fastapi",
    "opentelemetry-instrumentation-httpx",
    "opentelemetry-instrumentation-sqlalchemy",
    "prometheus-client",
    "prometheus-fastapi-instrumentator",
    "starlette-exporter",
    "asgi-correlation-id",
    "loguru",
    "logfire",
    "sentry-sdk",
    "orjson",
    "httpx",
    "sqlalchemy",
)


def describe() -> dict[str, Any]:
    """Return date, machine, versions, and the CPU usage of other processes in percent."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(cores()),
        "busy": psutil.cpu_percent(2.0),
        "switch_interval": sys.getswitchinterval(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the relevant packages in the environment of this process."""
    return {name: _version(name) for name in PACKAGES}


def _cpu() -> str:
    """Return the processor model, as reported by Linux."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING
