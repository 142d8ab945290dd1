"""Checks that send something: an empty export to each endpoint, and requests to a running app."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import urlsplit

from fastapi_observe.doctor.app import check_no_export, check_user_provider
from fastapi_observe.doctor.check import Check, Verdict
from fastapi_observe.doctor.page import MetricsPage
from fastapi_observe.export.push import signal_url
from fastapi_observe.export.setup import make_transport
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.requests.access import CONSOLE_HEADER, DOCTOR_AGENT, PUBLIC_PEERS
from fastapi_observe.settings.sources import SettingsError
from fastapi_observe.slo.http_get import GetError, get, iter_body

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    import httpx

    from fastapi_observe.settings.model import ObserveSettings

PROBE_TIMEOUT: Final = 5.0
"""Seconds that the Collector has to respond."""
MAX_SKEW: Final = 5.0
"""Seconds by which two clocks may differ: spans of two machines are compared in milliseconds."""
EMPTY_REQUEST: Final = b""
"""An export request without items in protobuf, for any signal."""
OK_STATUS: Final = 200
UNAUTHORIZED: Final = 401
NOT_FOUND: Final = 404
RESPONSE_TIMEOUT: Final = 10.0
"""Seconds that one response may take as a whole."""
MAX_REASON_LENGTH: Final = 200
MAX_TEXT_LENGTH: Final = 2000
MAX_CHECKS: Final = 100
"""Characters that are shown of why the metrics cannot be read."""
DEFAULT_CONSOLE: Final = "/observe"
NO_CONSOLE: Final = Check("console", "ok", "not served to this client; doctor MODULE:APP checks more, from inside")
NOT_SERVED: Final = {
    UNAUTHORIZED: "pass the value of metrics_token as --token",
    NOT_FOUND: "the metrics are off, on another path or port (metrics_path, metrics_port), or metrics_access denies "
    "them to this machine: run doctor MODULE:APP",
}
"""The next step for a status of `/metrics`."""


def probe_exports(settings: ObserveSettings) -> Iterator[Check]:
    """Send an empty request for each exported signal."""
    of_provider = [*check_user_provider(settings)]
    yield from of_provider
    urls = {"traces": settings.traces_url} if settings.tracing and not of_provider else {}
    urls |= {
        signal: signal_url(settings, signal)
        for signal, enabled in (("logs", settings.otlp_logs), ("metrics", settings.otlp_metrics))
        if enabled
    }
    exported = {signal: url for signal, url in urls.items() if url is not None}
    if not exported and not of_provider:
        yield from check_no_export(settings)
    for signal, url in exported.items():
        yield _probe(settings, signal, url)
    if exported and settings.otlp_protocol != "grpc":
        yield from check_clock(next(iter(exported.values())))


def _probe(settings: ObserveSettings, signal: str, url: str) -> Check:
    subject = f"export of {signal}"
    try:
        transport = make_transport(settings, url, signal)
    except (SettingsError, ImportError, ValueError) as error:
        return Check(subject, "wrong", str(error), "correct the setting")
    try:
        result = transport.send(EMPTY_REQUEST, monotonic() + min(PROBE_TIMEOUT, settings.otlp_timeout))
    finally:
        transport.close()
    if result.reason:
        found, _, step = result.message.partition(". ")
        return Check(subject, "wrong", f"{transport.target}: {found}", step or "check otlp_endpoint")
    return Check(subject, "ok", f"{transport.target} accepts it ({settings.otlp_protocol})")


def check_clock(url: str) -> Iterator[Check]:
    """Compare the clock with that of the server of `url`, which each HTTP response has in a header."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    try:
        with _ask(f"{parts.scheme}://{host}/") as response:
            skew = _read_skew(response)
    except GetError:
        return
    yield from _check_skew(skew, host)


def _read_skew(response: httpx.Response) -> float | None:
    """Return the seconds by which this machine is ahead of the server, None if the response has no time."""
    try:
        return time() - parsedate_to_datetime(response.headers.get("date", "")).timestamp()
    except (ValueError, TypeError):
        return None


def _check_skew(skew: float | None, host: str) -> Iterator[Check]:
    if skew is None:
        return
    if abs(skew) > MAX_SKEW:
        found = f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {host}"
        yield Check("clock", "wrong", found, "synchronize both clocks (NTP), or traces have gaps and overlaps")
    else:
        yield Check("clock", "ok", f"agrees with {host}")


def probe_app(url: str, token: str | None, *, allow_http_token: bool) -> Iterator[Check]:
    """Ask a running app: who can read its metrics, and its console, if it has one for this client.

    These are two requests, or three: the console is not asked if the response with the metrics says that there is none.
    """
    target, page = f"{url}/metrics", None
    accept = {"Accept": "text/plain;version=0.0.4"}
    try:
        with _ask(target, headers=accept, token=token, allow_http_token=allow_http_token) as response:
            own, skew = response.status_code, _read_skew(response)
            console = response.headers.get(CONSOLE_HEADER.decode(), DEFAULT_CONSOLE)
            is_served = _has_metrics(response)
            if own == OK_STATUS:
                page = _read_page(target, response)
    except GetError as error:
        yield Check("app", "wrong", f"{target}: {error.reason}", error.step)
        return
    of_console = [NO_CONSOLE]
    if console:
        path = console if console.startswith("/") else DEFAULT_CONSOLE  # "@host" would change the host
        of_console = [*_probe_console(url + path, token, allow_http_token=allow_http_token)]
    yield from of_console
    yield _judge_access(target, own, is_served=is_served, has_token=token is not None)
    if isinstance(page, Check):
        yield page
    elif page is not None:
        if len(of_console) <= 1:  # the console has the same from inside
            yield from page.check_counts()
        yield from page.check_cardinality(target)
    yield from _check_skew(skew, urlsplit(url).netloc.rpartition("@")[2])


def _judge_access(target: str, status: int, *, is_served: bool, has_token: bool) -> Check:
    """Judge who can read the metrics, from the response to this machine and one to a public client."""
    subject, step = "metrics access", NOT_SERVED.get(status, "see the log of the app")
    if _is_public(target):
        found = f"{target} is served to a public client behind a proxy"
        return Check(subject, "wrong", found, "set metrics_token or metrics_access")
    if is_served:
        return Check(subject, "ok", f"{target} is served to this machine, not to a public client")
    if status == UNAUTHORIZED and not has_token:
        found = f"{target} is served to clients that send metrics_token; with --token, doctor reads it"
        return Check(subject, "ok", found)
    if status == OK_STATUS:
        return Check(subject, "look", f"{target} is not a response with metrics", NOT_SERVED[NOT_FOUND])
    return Check(subject, "look", f"{target} responds {status} to this machine", step)


def _read_page(url: str, response: httpx.Response) -> MetricsPage | Check:
    try:
        return MetricsPage(b"".join(iter_body(response)).decode(errors="replace").splitlines())
    except (GetError, ValueError) as error:
        reason = error.reason if isinstance(error, GetError) else str(error)
        found = f"the metrics cannot be read: {reason[:MAX_REASON_LENGTH]}"
        return Check("metrics", "look", found, f"see what responds at {url}")


def _ask(
    url: str, headers: Mapping[str, str] | None = None, *, token: str | None = None, allow_http_token: bool = False
) -> AbstractContextManager[httpx.Response]:
    """Send a GET request that names `doctor`."""
    headers = {"User-Agent": DOCTOR_AGENT, **(headers or {})}
    return get(url, headers=headers, token=token, allow_http_token=allow_http_token, total_timeout=RESPONSE_TIMEOUT)


def _is_public(url: str) -> bool:
    """Return whether public clients behind a proxy get the metrics. The first that does not is the last that asks."""
    return all(_is_served_to(url, peer) for peer in PUBLIC_PEERS)


def _is_served_to(url: str, peer: str) -> bool:
    try:
        with _ask(url, headers={"X-Forwarded-For": peer}) as response:
            return _has_metrics(response)
    except GetError:
        return False


def _has_metrics(response: httpx.Response) -> bool:
    """Return whether a response has metrics, by its type: an app with a route for any path responds 200 too."""
    return response.status_code == OK_STATUS and "version=" in response.headers.get("content-type", "")


def _probe_console(url: str, token: str | None, *, allow_http_token: bool) -> Iterator[Check]:
    try:
        with _ask(f"{url}/api/info", token=token, allow_http_token=allow_http_token) as response:
            found: Any = json.loads(b"".join(iter_body(response))) if response.status_code == OK_STATUS else None
        checks = [read_check(each) for each in found["checks"][:MAX_CHECKS]] if found else None
    except (GetError, ValueError, KeyError, TypeError, RecursionError):
        return
    if checks is None:
        yield NO_CONSOLE
    else:
        yield from checks


def read_check(found: dict[str, Any]) -> Check:
    """Return a check that a console sent, its texts bounded. Raises `TypeError` or `ValueError` if it is not one."""
    check = Check(**found)
    if check.verdict not in get_args(Verdict) or not all(isinstance(text, str) for text in check):
        raise ValueError(f"{found} is not a check")
    return Check._make(text[:MAX_TEXT_LENGTH] for text in check)
