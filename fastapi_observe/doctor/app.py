"""Checks of an installed app: access to its metrics, other packages that measure the same, and its worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi_observe.doctor.check import Check, how_to_unset, set_by
from fastapi_observe.doctor.duplicates import check_duplicates
from fastapi_observe.doctor.instrumentation import exports_otlp, has_no_processor
from fastapi_observe.doctor.lines import check_exclusions, check_loggers
from fastapi_observe.doctor.process import SERVERS_AT_EXIT
from fastapi_observe.internal.networks import parse_address
from fastapi_observe.internal.version import documentation_url
from fastapi_observe.requests.access import PUBLIC_PEERS, MetricsAccess
from fastapi_observe.traces.provider import find_user_provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fastapi_observe.observability import Observability
    from fastapi_observe.settings.model import ObserveSettings

PUBLIC_IPV6_PEERS: Final = ("2001:db8::7", "3fff::7")
"""Addresses for documentation (RFC 3849, RFC 9637)."""
PRIVATE_PEER: Final = "10.0.0.7"
LOCAL_PEER: Final = "127.0.0.1"


def check_app(observability: Observability, server_spans: Iterable[str] = ()) -> Iterator[Check]:
    """Check an app that `install` was called on. `server_spans` are those that were seen inside a server span."""
    yield from check_metrics_access(observability)
    yield from check_duplicates(observability, server_spans)
    yield from check_loggers(observability)
    yield from check_exclusions(observability)
    yield from check_workers(observability)
    yield from check_internal_errors(observability)


def check_metrics_access(observability: Observability) -> Iterator[Check]:
    """Say which clients can read the metrics, by asking for them as a public and as a private client."""
    settings = observability.settings
    if not settings.metrics:
        return
    if settings.metrics_dependency is not None:
        yield Check("metrics access", "ok", "metrics_dependency decides; try it with --url")
        return
    host = settings.metrics_host
    where = settings.metrics_path if settings.metrics_port is None else f"port {settings.metrics_port} of {host}"
    token = settings.metrics_token
    if token is not None:
        yield Check("metrics access", "ok", f"{where} is served to clients that send metrics_token")
        return
    access = MetricsAccess(settings.metrics_access, None)
    if settings.metrics_port is not None and _is_this_machine(host):
        served = "clients on this machine" if _may_read(access, LOCAL_PEER, {}) else "no client"
        yield Check("metrics access", "ok", f"{where} is served to {served}")
        return
    families = PUBLIC_PEERS, PUBLIC_IPV6_PEERS

    def allows_public(may_read: Callable[[str], bool]) -> bool:
        # One address may be in a network of metrics_access; all those of a family are not.
        return any(all(map(may_read, peers)) for peers in families)

    readers = {
        "public clients": allows_public(lambda peer: _may_read(access, peer, {})),
        "clients of the private network": _may_read(access, PRIVATE_PEER, {}),
        "public clients behind a proxy": allows_public(
            lambda peer: _may_read(access, PRIVATE_PEER, {b"x-forwarded-for": peer.encode()})
        ),
    }
    served = ", ".join(name for name, allowed in readers.items() if allowed)
    found = f"{where} is served to {served or 'none of the tried clients'}"
    if readers["public clients"] or readers["public clients behind a proxy"]:
        yield Check(
            "metrics access", "wrong", found, "set metrics_token, or metrics_access to the networks of your scrapers"
        )
    elif settings.development:
        yield Check("metrics access", "ok", found)
    else:
        proxies = documentation_url("how-to/behind-a-proxy")
        step = f"behind a proxy that sends no forwarding header, set metrics_token: {proxies}"
        yield Check("metrics access", "ok", found, step if settings.metrics_access == "private" else "")


def _is_this_machine(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" if address is None else address.is_loopback


def _may_read(access: MetricsAccess, peer: str, headers: dict[bytes, bytes]) -> bool:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "http_version": "1.1",
        "client": (peer, 50000),
        "headers": [*headers.items()],
    }
    try:
        return access.allows(scope, headers)
    except Exception:  # noqa: BLE001 - the user's function: an error denies access
        return False


def check_workers(observability: Observability) -> Iterator[Check]:
    """Report the worker processes that share the metrics."""
    if not observability.settings.metrics:
        return
    workers = observability.workers
    if workers.is_degraded:
        yield degraded_workers()
    elif observability.settings.multiprocess == "off" and not workers.is_single:
        step = how_to_unset(observability.settings, "multiprocess")
        yield separate_workers(set_by(observability.settings, "multiprocess"), step)
    else:
        yield sharing_workers(workers.live_workers)


def check_internal_errors(observability: Observability) -> Iterator[Check]:
    """Report errors inside fastapi-observe."""
    counts = observability.internal_errors.counts
    if counts:
        where = ", ".join(f"{site} ({count})" for site, count in sorted(counts.items()))
        yield Check("internal errors", "wrong", f"errors inside fastapi-observe: {where}", "please report them")
    else:
        yield Check("internal errors", "ok", "none")


def check_exports(observability: Observability) -> Iterator[Check]:
    """Report what the running process has exported and dropped, without sending anything."""
    of_provider = [*check_user_provider(observability.settings)]
    yield from of_provider
    any_exported = bool(of_provider)
    for signal, counts in observability.export_counts():
        if signal in {"logs", "log_file"}:
            yield from check_dropped_lines(signal, sum(counts().dropped.values()))
            continue
        any_exported = True
        read = counts()
        failed, dropped = sum((read.failures or {}).values()), sum(read.dropped.values())
        yield check_export_counts(signal, read.exported, read.queued, dropped, failed)
    if not any_exported:
        yield from check_no_export(observability.settings)


def check_export_counts(signal: str, exported: int, queued: int, dropped: int, failed: int) -> Check:
    """Judge the counts of one exported signal. `failed` are requests to the Collector."""
    state = f"{exported} exported, {queued} queued, {dropped} dropped, {failed} failed requests"
    if dropped or (failed and not exported):
        step = "see the warning in the log, or run doctor MODULE:APP where the app runs"
        return Check(f"export of {signal}", "wrong", state, step)
    return Check(f"export of {signal}", "ok", state)


def check_missing_spans(requests: int) -> Check:
    """Return the check of an app with `otlp_endpoint` none of whose requests has a span."""
    found = f"0 exported, 0 queued, although {requests} request{'s were' if requests > 1 else ' was'} measured"
    step = (
        "read the warnings at the start of the app: a tracer provider that is set later, such as in the lifespan, "
        "takes the spans; if there is none, see the check sampling of doctor MODULE:APP"
    )
    return Check("export of traces", "look", found, step)


def check_dropped_lines(signal: str, dropped: int) -> Iterator[Check]:
    """Report lines that were dropped, of standard output or of the log file."""
    if dropped:
        step = "see the reason in fastapi_observe_dropped_total, a metric"
        yield Check(signal, "wrong", f"{dropped} lines were dropped", step)


def degraded_workers() -> Check:
    """Return the check of a worker process that does not share its values."""
    return Check(
        "workers",
        "wrong",
        "this worker process reports its own values only",
        "see its warning in the log; correct multiprocess_directory, or set otlp_metrics: each worker exports its own",
    )


def separate_workers(source: str, step: str) -> Check:
    """Return the check of worker processes that do not share their values. `source` is what sets `multiprocess`.

    There may be one only: `gunicorn -w 1` and `uvicorn --reload` have a supervisor too.
    """
    found = f"multiprocess is off{source}: if the server runs several worker processes, each /metrics has only its own"
    return Check("workers", "look", found, f"{step}, unless the server runs one worker process")


def sharing_workers(number: int) -> Check:
    """Return the check of worker processes that share their values, or of a single process."""
    return Check("workers", "ok", f"{number} worker processes share /metrics" if number > 1 else "one process")


def check_open_requests(observability: Observability) -> Iterator[Check]:
    """Report what is open in the running process."""
    if observability.settings.metrics:
        yield check_open(observability.metrics.requests_in_progress, observability.metrics.open_websockets)


def check_open(requests: int, websockets: int) -> Check:
    """Return the check of what is open now, which an exit waits for. A served request is open too, so it is `ok`."""
    if not requests and not websockets:
        return Check("exit", "ok", "no request or WebSocket is open; running background tasks are not counted")
    numbers = ((requests, "request"), (websockets, "WebSocket"))
    names = " and ".join(f"{number} {name}{'s' * (number > 1)}" for number, name in numbers if number)
    are = "is" if requests + websockets == 1 else "are"
    return Check("exit", "ok", f"{names} {are} open; {SERVERS_AT_EXIT}")


def check_user_provider(settings: ObserveSettings) -> Iterator[Check]:
    """Say that spans go to a tracer provider of the user, if there is one, and whether it can export them."""
    provider = find_user_provider(settings) if settings.tracing else None
    if provider is None:
        return
    name = f"{type(provider).__module__}.{type(provider).__qualname__}"
    if is_idle := has_no_processor(provider):
        found = f"no trace is exported: your tracer provider ({name}) has no span processor"
    else:
        found = f"spans go to your tracer provider ({name}), whose span processors export them"
    # An exporter of OTLP in the provider reads the variables of OpenTelemetry too.
    is_standard = settings.sources()["otlp_endpoint"].startswith("OTEL_")
    is_unused = settings.otlp_endpoint is not None and not (is_standard and exports_otlp(provider))
    if is_unused:
        found += "; otlp_endpoint has no effect on spans" + set_by(settings, "otlp_endpoint")
    if is_idle and not settings.development:
        step = "add a span processor with an exporter to it, or remove it and set OTEL_EXPORTER_OTLP_ENDPOINT"
        yield Check("export of traces", "look", found, step)
    elif is_unused:
        yield Check("export of traces", "look", found, "unset one of the two")
    else:
        yield Check("export of traces", "ok", found)


def check_no_export(settings: ObserveSettings) -> Iterator[Check]:
    """Say why an app exports nothing, and what to set."""
    source = settings.sources()["otlp_endpoint"]
    if not settings.tracing:
        if settings.otlp_endpoint is not None:
            found = f"otlp_endpoint is set{set_by(settings, 'otlp_endpoint')}, but tracing is off"
            step = f"{how_to_unset(settings, 'tracing')} to export traces"
            yield Check("export", "look", found + set_by(settings, "tracing"), step)
    elif settings.span_processors:
        yield Check("export", "ok", "spans go to span_processors; nothing is sent to otlp_endpoint, which is not set")
    elif settings.development:
        yield Check("export", "ok", "nothing is exported; the development console shows the traces")
    elif source == "OTEL_TRACES_EXPORTER":
        found = "no trace is exported: OTEL_TRACES_EXPORTER does not contain otlp"
        yield Check("export", "look", found, "set OTEL_TRACES_EXPORTER=otlp, or unset it")
    else:
        found = "no trace is exported: otlp_endpoint is not set"
        step = "set OTEL_EXPORTER_OTLP_ENDPOINT"
        if source != "default":
            found = "no trace is exported: otlp_endpoint is None" + set_by(settings, "otlp_endpoint")
            step = f"{how_to_unset(settings, 'otlp_endpoint')}, so that OTEL_EXPORTER_OTLP_ENDPOINT is read"
        yield Check("export", "look", found, step)
