"""Checks of the process and its settings: versions, settings without effect, the disk of the log file."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement

from fastapi_observe.doctor.check import Check, how_to_unset, set_by
from fastapi_observe.doctor.instrumentation import find_service_name
from fastapi_observe.doctor.lines import check_lines
from fastapi_observe.traces.provider import find_user_provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.settings.model import ObserveSettings

_VARIABLE: Final = re.compile(r"^\s*(?:export\s+)?((?:OBSERVE|OTEL)_\w+)\s*=", re.MULTILINE)
LOW_DISK: Final = 1 << 30
"""Bytes of free space below which the disk of the log file is reported."""
FRAMEWORK_DISTRIBUTIONS: Final = ("fastapi", "uvicorn")
DOCKER_GRACE: Final = 10
"""Seconds after SIGTERM after which Docker kills a container."""
SERVERS_AT_EXIT: Final = (
    "uvicorn waits for open requests without limit unless --timeout-graceful-shutdown is set, granian unless "
    "--workers-kill-timeout is set; gunicorn (30 s) and hypercorn (3 s) have a limit by default"
)


def check_versions() -> Iterator[Check]:
    """Compare the installed packages with the versions that fastapi-observe requires."""
    outside = []
    for line in requires("fastapi-observe") or ():
        required = Requirement(line)
        extras = ["", "fastapi", "grpc", "sqlalchemy", "asyncpg", "psycopg"]
        if required.marker is not None and not any(required.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        try:
            installed = version(required.name)
        except PackageNotFoundError:
            continue  # an extra that is not used
        if not required.specifier.contains(installed, prereleases=True):
            outside.append(f"{required.name} {installed} (required: {required.specifier})")
    if outside:
        yield Check("versions", "wrong", f"not supported: {', '.join(outside)}", "install a supported version")
        return
    found = [f"Python {platform.python_version()}", f"fastapi-observe {version('fastapi-observe')}"]
    for name in FRAMEWORK_DISTRIBUTIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield Check("versions", "ok", ", ".join(found))


def check_settings(settings: ObserveSettings, *, is_running: bool = True) -> Iterator[Check]:
    """Report settings without effect, and what is switched on."""
    for message in settings.warnings():
        yield Check("settings", "look", message.rstrip("."), "correct or unset the variable")
    yield from check_service(settings, is_running=is_running)
    yield from check_env_file(settings)
    switches = {
        "traces": (settings.tracing, "tracing"),
        "metrics": (settings.metrics, "metrics"),
        "logs": (settings.logs, "logs"),
        "console": (settings.serves_console, "console"),
    }
    off = [f"{name}{set_by(settings, option)}" for name, (enabled, option) in switches.items() if not enabled]
    on = f"on: {', '.join(name for name, (enabled, _) in switches.items() if enabled) or 'nothing'}"
    yield Check("signals", "ok", f"{on}; off: {', '.join(off)}" if off else on)
    yield from check_sampling(settings)
    yield from check_lines(settings)
    yield check_exit(settings)


def check_service(settings: ObserveSettings, *, is_running: bool = True) -> Iterator[Check]:
    """Say which name and environment the app reports, and whether its tracer provider reports another name."""
    name = settings.service_name
    if name == "unknown_service":
        step = "set service_name, OTEL_SERVICE_NAME or the title of the app"
        yield Check("service", "look", "the service has no name", step)
    else:
        found = f"{name} in {settings.environment}"
        if not is_running and not settings.development and settings.sources()["environment"] == "default":
            found += "; with FASTAPI_ENV=development, doctor checks what `fastapi dev` runs"
        yield Check("service", "ok", found)
    other = find_service_name(find_user_provider(settings)) if settings.tracing else None
    if other is not None and other != name:
        found = f"your tracer provider reports spans as service {other}; metrics and logs are those of {name}"
        step = f'pass resource=Resource.create({{"service.name": "{name}"}}) to your tracer provider'
        if name == "unknown_service":
            step = f"set service_name to {other} in install"
        yield Check("service", "look", found, step)


def check_exit(settings: ObserveSettings) -> Check:
    """Say how long an exit can take."""
    found = f"the export takes up to {settings.shutdown_timeout:g} s{set_by(settings, 'shutdown_timeout')}"
    if settings.shutdown_timeout > DOCKER_GRACE:
        return Check("exit", "look", found, "Docker kills a container after 10 s: lower shutdown_timeout")
    return Check("exit", "ok", f"{found}; before it, {SERVERS_AT_EXIT}")


def check_env_file(settings: ObserveSettings) -> Iterator[Check]:
    """Report a `.env` in the current directory that has variables for this package and is not read."""
    file = Path(".env")
    if settings.env_file is not None or not file.is_file():
        return
    names = _VARIABLE.findall(file.read_text("utf-8", errors="replace"))
    if unread := sorted({name for name in names if name not in os.environ}):
        found = f".env has variables that are not read: {', '.join(unread)}"
        yield Check(
            "settings",
            "look",
            found,
            "set OBSERVE_ENV_FILE=.env, unless the server is started with uvicorn --env-file .env",
        )


def check_sampling(settings: ObserveSettings) -> Iterator[Check]:
    """Say which traces are exported."""
    if not settings.tracing:
        return
    if find_user_provider(settings) is not None:
        yield Check("sampling", "ok", "the sampler of your tracer provider decides")
        return
    is_off = settings.sampler.endswith("always_off")
    ratio = 0 if is_off else settings.sample_ratio
    is_every = settings.sampler.endswith("always_on") or ratio == 1
    follows_callers = settings.sampler.startswith("parentbased") and settings.trust_incoming not in ("never", [], ())
    tail = settings.tail_sampling if settings.sampler != "always_off" and (follows_callers or not is_every) else ()
    option, value = ("sampler", settings.sampler) if is_off else ("sample_ratio", 0)
    if not (is_every or ratio or tail):
        new = "new " * settings.sampler.startswith("parentbased")
        found = f"no {new}trace is exported: {option} is {value}{set_by(settings, option)}"
        yield Check("sampling", "look", found, f"{how_to_unset(settings, option)} to export traces")
        return
    kinds = ", ".join(tail or ())
    if is_every:
        source = set_by(settings, "sampler") if settings.sampler.endswith("always_on") else ""
        found = f"exports every trace{source}"
        found += ", except those that a trusted caller did not sample" * follows_callers
        found += f"; of these, requests of these kinds: {kinds}" * bool(follows_callers and tail)
    else:
        found = f"exports {100 * ratio:g}% of new traces"
        found += f": sampler is {value}{set_by(settings, option)}" if is_off else set_by(settings, "sample_ratio")
        found += f"; and every request of these kinds: {kinds}" * bool(tail)
        found += "; a trusted caller decides about its own traces" * follows_callers
    if is_off:
        yield Check("sampling", "look", found, f"{how_to_unset(settings, option)} to export new traces by sample_ratio")
    else:
        yield Check("sampling", "ok", found)


def check_log_file(settings: ObserveSettings) -> Iterator[Check]:
    """Check that the log file can be written, and that its disk has room."""
    if settings.log_file is None or not settings.logs:
        return
    file = Path(settings.log_file.replace("{pid}", str(os.getpid()))).absolute()
    existing = next(path for path in (file, *file.parents) if path.exists())
    if existing != file and not existing.is_dir():
        yield Check("log file", "wrong", f"{existing} is not a directory", "set log_file to another path")
        return
    directory = existing if existing.is_dir() else existing.parent
    if not (_can_create_file(directory) if existing == directory else os.access(existing, os.W_OK)):
        found = f"{existing} cannot be written by this user"
        yield Check("log file", "wrong", found, "change its owner or permissions, or set log_file to another path")
        return
    free = shutil.disk_usage(directory).free
    room = f"{free / (1 << 30):.1f} GiB are free for {file}"
    if free < LOW_DISK:
        yield Check("log file", "look", room, "make room, or lower log_retention; lines are dropped on a full disk")
    else:
        yield Check("log file", "ok", room)


def check_multiprocess_directory(settings: ObserveSettings) -> Iterator[Check]:
    """Check that worker processes can share their metrics in `multiprocess_directory`, if it is set."""
    if settings.multiprocess_directory is None or settings.multiprocess == "off" or not settings.metrics:
        return
    place = Path(settings.multiprocess_directory)
    source = set_by(settings, "multiprocess_directory")
    step = "set multiprocess_directory to a directory that exists and can be written; it is not created"
    if not place.is_dir():
        problem = "is not a directory" if place.exists() else "does not exist"
        yield Check("workers", "wrong", f"the directory {place.absolute()} {problem}{source}", step)
    elif not _can_create_file(place):
        yield Check("workers", "wrong", f"{place.absolute()} cannot be written by this user{source}", step)
    elif not place.is_absolute():
        found = f"the directory {place} depends on the current directory, here {place.absolute()}{source}"
        yield Check("workers", "look", found, "set multiprocess_directory to an absolute path")


def _can_create_file(directory: Path) -> bool:
    """Return whether a file can be created. Permissions alone do not say so: not for root, and not below /proc."""
    try:
        TemporaryFile(dir=directory).close()
    except OSError:
        return False
    return True
