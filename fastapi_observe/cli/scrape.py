"""Read a `/metrics` endpoint, and count its series while they arrive."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.cli.output import InputError, printable
from fastapi_observe.metrics.budget import WITHIN_LABEL_SET
from fastapi_observe.slo.http_get import GetError, get, iter_body
from fastapi_observe.workers.files import OVERFLOW

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from urllib.parse import SplitResult

    from httpx import Response
    from prometheus_client.metrics_core import Metric

MAX_LINE_BYTES: Final = 65_536
PARSE_BATCH: Final = 1000
"""Number of lines that are parsed together."""
MAX_QUOTED_URL_LENGTH: Final = 200
"""Maximum length of a URL in a message, in characters."""
EXAMPLE_URL: Final = "http://127.0.0.1:8000/metrics"


NO_URL: Final = ("--url is not an http or https URL", "use one such as http://127.0.0.1:8000")
"""The reason and the next step for the URL of an app that cannot be used."""


def split_app_url(url: str) -> SplitResult | None:
    """Return the parts of the URL of an app; None if it is not an http or https URL, or has a user or a password."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return None
    return parts if usable and url.isascii() and url.isprintable() and " " not in url else None


class ScrapeError(Exception):
    """Raised if metrics cannot be read. The message has the URL, the reason and the next step."""

    def __init__(self, url: str, reason: str, step: str) -> None:
        super().__init__(f"cannot read {display_url(url)}: {printable(reason)}; {step}")


@dataclass(slots=True)
class ScrapedMetric:
    """A metric of a scrape: the number of its series, its label sets, and the values of each label."""

    name: str
    series: int = 0
    label_sets: set[int] = field(default_factory=set)
    values: dict[str, set[str]] = field(default_factory=dict)
    has_overflow: bool = False

    def add(self, labels: dict[str, str]) -> None:
        """Count a series."""
        own = [(name, value) for name, value in labels.items() if name not in WITHIN_LABEL_SET]
        # The hash is enough to count label sets, and keeps a scrape of a million series in memory.
        label_set = hash(frozenset(own))
        self.series += 1
        if label_set in self.label_sets:
            return
        self.label_sets.add(label_set)
        for name, value in own:
            self.values.setdefault(name, set()).add(value)
            self.has_overflow = self.has_overflow or value == OVERFLOW


@dataclass(slots=True)
class Scrape:
    """The metrics of a scrape by name. `self_reported` are the numbers that fastapi-observe reports about itself."""

    metrics: dict[str, ScrapedMetric] = field(default_factory=dict)
    self_reported: dict[str, float] = field(default_factory=dict)

    def add(self, family: Metric) -> None:
        """Count a metric, or a further part of it."""
        name = f"{family.name}_total" if family.type == "counter" else family.name
        # The text format has the creation times of a metric as a metric of their own.
        base = name.removesuffix("_created")
        if base != name:
            name = next((known for known in (f"{base}_total", base) if known in self.metrics), name)
        metric = self.metrics.get(name) or self.metrics.setdefault(name, ScrapedMetric(name))
        for sample in family.samples:
            metric.add(sample.labels)
        if family.name == "fastapi_observe_limits_info":
            limits = {name: value for sample in family.samples for name, value in sample.labels.items()}
            self.self_reported.update({name: int(value) for name, value in limits.items() if value.isdecimal()})
        elif family.name.startswith("fastapi_observe_"):
            self.self_reported.update({sample.name: sample.value for sample in family.samples if not sample.labels})
        if family.name == "fastapi_observe_series_overflow":
            for sample in family.samples:
                overflown = sample.labels.get("metric", "")
                self.metrics.setdefault(overflown, ScrapedMetric(overflown)).has_overflow = True


_NO_INPUT: Final = "cannot read the token from standard input"
_INPUT_STEP: Final = "redirect it from a file that has the token as its first line, or pass the token to --token"


def add_token_arguments(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--token` and `--allow-http-token`."""
    parser.add_argument("--token", help=f"{text}; - reads it from standard input")
    parser.add_argument(
        "--allow-http-token", action="store_true", help="send the token to a public address over plain http too"
    )


def read_token(args: argparse.Namespace) -> str | None:
    """Return the token of the arguments, or of the first line of standard input. Raises `InputError`."""
    token: str | None = args.token
    if token != "-":  # noqa: S105 - not a token
        return token
    if sys.stdin is None:
        raise InputError(f"{_NO_INPUT}: it is closed; {_INPUT_STEP}")
    try:
        return sys.stdin.readline().strip()
    except UnicodeDecodeError:
        raise InputError(f"{_NO_INPUT}: it is not text; {_INPUT_STEP}") from None
    except OSError as error:
        raise InputError(f"{_NO_INPUT}: {error.strerror or error}; {_INPUT_STEP}") from None


def display_url(url: str) -> str:
    """Return a URL for a message: without user, password, query and fragment."""
    before, slashes, rest = url[:MAX_QUOTED_URL_LENGTH].partition("://")
    rest = re.split(r"[?#]", rest if slashes else before, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return printable(f"{before}{slashes}" * bool(slashes) + host.rpartition("@")[2] + slash + path)


def scrape(url: str, token: str | None = None, *, allow_http_token: bool = False) -> Scrape:
    """Read a `/metrics` endpoint. Raises `ScrapeError`; see `slo.http_get` for the limits."""
    result = Scrape()
    for family in parse_families(url, read_lines(url, token, allow_http_token=allow_http_token)):
        result.add(family)
    if not result.metrics:
        raise no_metrics(url)
    return result


def no_metrics(url: str) -> ScrapeError:
    """Return the error for a response without metrics."""
    return ScrapeError(url, "there are no metrics", f"use the URL of the metrics, such as {EXAMPLE_URL}")


def read_lines(url: str, token: str | None = None, *, allow_http_token: bool = False) -> Iterator[str]:
    """Yield the lines of a `/metrics` endpoint. A URL without a path gets the path `/metrics`."""
    target = _check_url(url)
    try:
        with get(
            target, headers={"Accept": "text/plain;version=0.0.4"}, token=token, allow_http_token=allow_http_token
        ) as response:
            _check_response(url, response, token)
            yield from _split_lines(url, response)
    except GetError as error:
        raise ScrapeError(url, error.reason, error.step) from error


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ScrapeError(url, "not an http or https URL", f"use one such as {EXAMPLE_URL}")
    if "@" in parts.netloc:
        raise ScrapeError(url, "user and password are not sent", "remove them, and pass a token with --token")
    return parts._replace(path=parts.path or "/metrics", fragment="").geturl()


def _check_response(url: str, response: Response, token: str | None) -> None:
    status = response.status_code
    if status in {401, 403}:
        raise ScrapeError(url, f"HTTP {status}", "pass the token with --token" if token is None else "check the token")
    if response.is_redirect or 300 <= status < 400:  # noqa: PLR2004 - 3xx
        target = display_url(response.headers.get("location") or "another URL")
        raise ScrapeError(url, f"it redirects to {target}", "redirects are not followed; use the final URL")
    if status == 404:  # noqa: PLR2004
        step = "check the path; if it is right, this client is not allowed (see metrics_access, metrics_token)"
        raise ScrapeError(url, "HTTP 404", step)
    if status != 200:  # noqa: PLR2004
        raise ScrapeError(url, f"HTTP {status}", "see the log of the server")
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_text = content_type in {"text/plain", "application/openmetrics-text"}
    if not is_text or response.headers.get("content-encoding"):
        raise ScrapeError(
            url, f"the response is not Prometheus text, but {content_type[:80]!r}", "use the URL of the metrics"
        )


def _split_lines(url: str, response: Response) -> Iterator[str]:
    rest = b""
    for chunk in iter_body(response):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ScrapeError(url, f"a line is longer than {MAX_LINE_BYTES} bytes", "use the URL of the metrics")
        for line in whole:
            yield line.decode("utf-8", "replace")
    yield rest.decode("utf-8", "replace")


def parse_families(url: str, lines: Iterable[str]) -> Iterator[Metric]:
    """Parse lines of the text format in batches: a large metric is yielded in several parts."""
    head: list[str] = []
    batch: list[str] = []
    for line in lines:
        if line.startswith("# EOF"):
            break
        starts = line.startswith(("# HELP ", "# TYPE "))
        if batch and (starts or len(batch) >= PARSE_BATCH):
            yield from _parse(url, head, batch)
            # The next part of the same metric needs its type again.
            head, batch = [] if starts else head, []
        if starts:
            head.append(line)
        elif line and not line.startswith("#"):
            batch.append(line)
    yield from _parse(url, head, batch)


def _parse(url: str, head: list[str], batch: list[str]) -> list[Metric]:
    try:
        return list(text_string_to_metric_families("\n".join([*head, *batch, ""])))
    except (ValueError, IndexError, KeyError) as error:
        near = (batch or head or [""])[0][:80]
        raise ScrapeError(url, f"this is not Prometheus text: {near!r}", "use the URL of the metrics") from error
