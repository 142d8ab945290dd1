"""What `cardinality` reads: one scrape of a `/metrics` endpoint, counted while it comes in."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.internal.networks import PRIVATE_NETWORKS, address_in
from fastapi_observe.metrics.budget import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

MAX_RESPONSE_BYTES: Final = 64 * 1_048_576
"""Most bytes of one answer."""

MAX_LINE_BYTES: Final = 65_536
"""Most bytes of one line."""

PARSE_BATCH: Final = 1000
"""Lines that are parsed together."""

READ_TIMEOUT: Final = 10.0
"""Seconds that the server may be silent."""

TOTAL_TIMEOUT: Final = 60.0
"""Seconds that one scrape may take altogether."""

MAX_URL_LENGTH: Final = 200
"""Characters of a URL that are told."""

POINTS: Final = frozenset({"le", "quantile"})
"""Labels that make several lines of one label set."""

EXAMPLE: Final = "http://127.0.0.1:8000/metrics"


class ScrapeError(Exception):
    """The metrics cannot be read; says the URL, the reason and the next step."""

    def __init__(self, url: str, reason: str, step: str) -> None:
        super().__init__(f"cannot read {display_url(url)}: {printable(reason)}; {step}")


@dataclass(slots=True)
class ScrapedMetric:
    """What one scrape shows of a metric: its lines (`series`), label sets, and the values of each label."""

    name: str
    series: int = 0
    label_sets: set[int] = field(default_factory=set)
    values: dict[str, set[str]] = field(default_factory=dict)
    overflown: bool = False

    def add(self, labels: dict[str, str]) -> None:
        """Take note of a line."""
        own = [(name, value) for name, value in labels.items() if name not in POINTS]
        label_set = hash(frozenset(own))
        self.series += 1
        if label_set in self.label_sets:
            return
        self.label_sets.add(label_set)
        for name, value in own:
            self.values.setdefault(name, set()).add(value)
            self.overflown = self.overflown or value == OVERFLOW


@dataclass(slots=True)
class Scrape:
    """What one scrape shows. `told` are the numbers that fastapi-observe tells about itself, by name."""

    metrics: dict[str, ScrapedMetric] = field(default_factory=dict)
    self_reported: dict[str, float] = field(default_factory=dict)

    def add(self, family: Metric) -> None:
        """Take note of a metric, or of a further part of it."""
        name = f"{family.name}_total" if family.type == "counter" else family.name
        made = name.removesuffix("_created")  # the text format shows them as a metric of their own
        if made != name:
            name = next((known for known in (f"{made}_total", made) if known in self.metrics), name)
        counted = self.metrics.get(name) or self.metrics.setdefault(name, ScrapedMetric(name))
        for sample in family.samples:
            counted.add(sample.labels)
        if family.name == "fastapi_observe_limits_info":
            bounds = {name: value for sample in family.samples for name, value in sample.labels.items()}
            self.self_reported.update({name: int(value) for name, value in bounds.items() if value.isdecimal()})
        elif family.name.startswith("fastapi_observe_"):
            self.self_reported.update({sample.name: sample.value for sample in family.samples if not sample.labels})
        if family.name == "fastapi_observe_series_overflow":
            for sample in family.samples:
                metric = sample.labels.get("metric", "")
                self.metrics.setdefault(metric, ScrapedMetric(metric)).overflown = True


def printable(text: str) -> str:
    """Return text that moves no cursor and begins no line: what is not printable is escaped."""
    return "".join([each if each.isprintable() else ascii(each)[1:-1] for each in text])


def display_url(url: str) -> str:
    """Return a URL as it may be told: without user, password, query and fragment."""
    before, slashes, rest = url[:MAX_URL_LENGTH].partition("://")
    rest = re.split(r"[?#]", rest if slashes else before, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return printable(f"{before}{slashes}" * bool(slashes) + host.rpartition("@")[2] + slash + path)


def scrape(url: str, token: str | None = None, *, insecure: bool = False) -> Scrape:
    """Read a `/metrics` endpoint; no redirect is followed, no proxy is used, the answer is bounded in size and time.

    A token goes over plain http to a private address only, unless `insecure`. Raises UnreadableError.
    """
    scraped = Scrape()
    for family in families(url, lines(url, token, insecure=insecure)):
        scraped.add(family)
    if not scraped.metrics:
        raise ScrapeError(url, "there are no metrics", f"give the URL of the metrics, such as {EXAMPLE}")
    return scraped


def lines(url: str, token: str | None = None, *, insecure: bool = False) -> Iterator[str]:
    """Yield the lines of a `/metrics` endpoint as `scrape` reads them."""
    parts = _parts(url)
    try:
        with _answer(url, parts, token, insecure=insecure) as response:
            yield from _lines(url, response)
    except ssl.SSLError as exc:
        raise ScrapeError(url, f"TLS failed ({exc.reason or exc})", "check scheme and certificate") from exc
    except TimeoutError as exc:
        raise ScrapeError(url, "no answer in time", "check that the server is up and not overloaded") from exc
    except (OSError, UnicodeError) as exc:  # the latter is what a name that is none raises
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ScrapeError(url, reason, "start the server, or correct host and port") from exc
    except http.client.HTTPException as exc:
        raise ScrapeError(url, f"broken answer ({type(exc).__name__})", "give the URL of an HTTP server") from exc


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ScrapeError(url, "it is no http or https URL", f"give one such as {EXAMPLE}")
    if "@" in parts.netloc:
        raise ScrapeError(url, "user and password are not sent", "take them out, and give a token with --token")
    return parts


@contextmanager
def _answer(url: str, parts: SplitResult, token: str | None, *, insecure: bool) -> Iterator[http.client.HTTPResponse]:
    """Ask, and check the head of the answer; whatever happens, the connection ends after `LONGEST` seconds."""
    https = parts.scheme == "https"
    kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=READ_TIMEOUT)
    headers = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity", "User-Agent": "fastapi-observe"}
    try:
        connection.connect()
        peer = connection.sock
        if token is not None:
            if not token.isascii() or not token.isprintable() or not token or " " in token:
                raise ScrapeError(url, "the token is no ASCII word", "correct --token")
            if not (https or insecure or address_in(str(peer.getpeername()[0]), PRIVATE_NETWORKS)):
                raise ScrapeError(
                    url,
                    "the token would go over plain http to a public address",
                    "use https, or say --allow-http-token",
                )
            headers["Authorization"] = f"Bearer {token}"
        late = threading.Event()
        watch = threading.Timer(TOTAL_TIMEOUT, _end, (peer, late))
        watch.daemon = True
        watch.start()
        try:
            target = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            _check(url, response, token)
            yield response
        finally:
            watch.cancel()
            if late.is_set():
                raise TimeoutError
    finally:
        connection.close()


def _end(peer: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)


def _check(url: str, response: http.client.HTTPResponse, token: str | None) -> None:
    status = response.status
    if status in {401, 403}:
        step = "give the token with --token" if token is None else "check the token"
        raise ScrapeError(url, f"it answers {status}", step)
    if 300 <= status < 400:  # noqa: PLR2004 - 3xx
        where = display_url(response.getheader("location") or "elsewhere")
        raise ScrapeError(url, f"it redirects to {where}", "redirects are not followed: give the final URL")
    if status == http.client.NOT_FOUND:
        step = "correct the path, or ask from an address that `metrics_access` lets in"
        raise ScrapeError(url, "it answers 404", step)
    if status != http.client.OK:
        raise ScrapeError(url, f"it answers {status}", "look into the server's log")
    kind = response.getheader("content-type", "").partition(";")[0].strip().lower()
    if kind not in {"text/plain", "application/openmetrics-text"} or response.getheader("content-encoding"):
        raise ScrapeError(url, f"the answer is no Prometheus text, but {kind[:80]!r}", "give the URL of the metrics")


def _lines(url: str, response: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the lines of the body, as long as it keeps to the bounds."""
    size = 0
    rest = b""
    while part := response.read1(MAX_LINE_BYTES):
        size += len(part)
        *whole, rest = (rest + part).split(b"\n")
        if size > MAX_RESPONSE_BYTES or len(rest) > MAX_LINE_BYTES:
            what = (
                f"more than {MAX_RESPONSE_BYTES // 1_048_576} MiB"
                if size > MAX_RESPONSE_BYTES
                else "lines without an end"
            )
            raise ScrapeError(url, f"the answer has {what}", "take labels from the metrics, or read a part of them")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if response.length:
        raise ScrapeError(url, f"the answer broke off after {size} bytes", "try again")
    yield rest.decode("utf-8", "replace")


def families(url: str, lines: Iterable[str]) -> Iterator[Metric]:
    """Parse lines of the text format, a part of a metric at a time: a large one comes several times."""
    head: list[str] = []
    batch: list[str] = []
    for line in lines:
        if line.startswith("# EOF"):
            break
        starts = line.startswith(("# HELP ", "# TYPE "))
        if batch and (starts or len(batch) >= PARSE_BATCH):
            yield from _parsed(url, head, batch)
            head, batch = [] if starts else head, []
        if starts:
            head.append(line)
        elif line and not line.startswith("#"):
            batch.append(line)
    yield from _parsed(url, head, batch)


def _parsed(url: str, head: list[str], batch: list[str]) -> list[Metric]:
    try:
        return list(text_string_to_metric_families("\n".join([*head, *batch, ""])))
    except (ValueError, IndexError, KeyError) as exc:
        near = (batch or head or [""])[0][:80]
        raise ScrapeError(url, f"there is no Prometheus text near {near!r}", "give the URL of the metrics") from exc
