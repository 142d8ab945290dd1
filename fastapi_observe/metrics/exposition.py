"""Rendering of a scrape response: Prometheus text or OpenMetrics, compressed if the client accepts it."""

from __future__ import annotations

import logging
import re
from copy import copy
from time import sleep
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import exposition as text_exposition
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from fastapi_observe.internal.version import package_version
from fastapi_observe.metrics.series import YIELD_SLEEP, BoundedMetric
from fastapi_observe.metrics.shared.collectors import MergedFamilyText, StaticCollector, collectors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.budget import SeriesLimiter

ScrapeResponse = tuple[list[tuple[bytes, bytes]], bytes]
"""Headers and body."""

TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"

MAX_SCRAPE_BYTES: Final = 16_777_216
"""Bytes of one response before compression. Families that do not fit are left out."""

ENCODE_CHUNK_SIZE: Final = 65_536
"""Characters that are encoded at one time."""

QUALITY: Final = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
"""RFC 9110, 12.4.2."""

# Exposition text is so repetitive that a higher level saves little and makes the scrape longer.
SCRAPE_GZIP_LEVEL: Final = 1

SUFFIXES: Final = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}
"""Suffixes of the sample names of a family, by type."""


class RenderedFamily(NamedTuple):
    """A family as text: its name in the text format, all names of its samples, the text, and whether it is ours."""

    name: str
    sample_names: list[str]
    text: str
    is_ours: bool


def render(
    registries: Iterable[Any],
    accept: str,
    accept_encoding: str,
    internal_errors: InternalErrors,
    report_hidden: Callable[[list[str]], None] | None = None,
) -> ScrapeResponse:
    """Return headers and body for these registries.

    A family is left out if an earlier one has its name; `report_hidden` gets the names of other libraries' families
    that are left out because of our metrics. A collector that raises is left out and counted.
    """
    openmetrics, gzip = prefers_openmetrics(accept), accepts_gzip(accept_encoding)
    body = ResponseBody(gzip=gzip)
    names = UsedNames()
    for collector in (collector for registry in registries for collector in collectors_of(registry)):
        sleep(YIELD_SLEEP)
        try:
            for family in _families(collector, openmetrics=openmetrics):
                if not names.add(family):
                    continue
                if body.size + len(family.text) > MAX_SCRAPE_BYTES:
                    raise OverflowError(f"{family.name} does not fit")  # noqa: TRY301 - counted and logged below
                body.add(family.text)
        except OverflowError as exc:
            internal_errors("metrics.too_large", exc)
        except Exception as exc:  # noqa: BLE001 - collect() of any collector
            internal_errors("collect", exc)
    if names.hidden and report_hidden is not None:
        report_hidden(names.hidden)
    if openmetrics:
        body.add("# EOF\n")
    content = body.end()
    headers = [(b"content-type", OPENMETRICS if openmetrics else TEXT), (b"vary", b"accept, accept-encoding")]
    if gzip:
        headers.append((b"content-encoding", b"gzip"))
    headers.append((b"content-length", str(len(content)).encode()))
    return headers, content


class UsedNames:
    """The sample names in a response. `hidden` are families of other libraries whose names our metrics use."""

    def __init__(self) -> None:
        self.hidden: list[str] = []
        self._used: set[str] = set()
        self._ours: set[str] = set()

    def add(self, family: RenderedFamily) -> bool:
        """Add the names of a family, or return False if one of them is in use."""
        if not self._used.isdisjoint(family.sample_names):
            if not family.is_ours and not self._ours.isdisjoint(family.sample_names):
                self.hidden.append(family.name)
            return False
        self._used.update(family.sample_names)
        if family.is_ours:
            self._ours.update(family.sample_names)
        return True


class HiddenFamilyWarning:
    """Warns once about each family of another library that a scrape leaves out."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def __call__(self, names: list[str]) -> None:
        """Log a warning with all names if one of them is new. The names are among those of our own metrics."""
        if not self._reported.issuperset(names):
            self._reported.update(names)
            logging.getLogger("fastapi_observe").warning(
                "Metrics of another library are not in the scrape response, because fastapi-observe has metrics of the "
                "same name: %s. Give them another name (prometheus-fastapi-instrumentator: "
                "instrument(app, metric_namespace='...')), or remove that library.",
                ", ".join(dict.fromkeys(names)),
            )


class ResponseBody:
    """The body of a scrape response, encoded and compressed in chunks.

    Encoding all of it at once would hold the GIL for milliseconds and delay requests.
    """

    def __init__(self, *, gzip: bool) -> None:
        self.size = 0  # in characters
        self._parts: list[bytes] = []
        self._compress: Any = None
        if gzip:
            import zlib  # noqa: PLC0415 - needed by scrapes only

            self._compress = zlib.compressobj(SCRAPE_GZIP_LEVEL, wbits=31)

    def add(self, text: str) -> None:
        """Append text. Lone surrogates are written as escapes."""
        self.size += len(text)
        for start in range(0, len(text), ENCODE_CHUNK_SIZE):
            sleep(YIELD_SLEEP)
            data = text[start : start + ENCODE_CHUNK_SIZE].encode("utf-8", "backslashreplace")
            self._parts.append(data if self._compress is None else self._compress.compress(data))

    def end(self) -> bytes:
        """Return the complete body."""
        if self._compress is not None:
            self._parts.append(self._compress.flush())
        return b"".join(self._parts)


def prefers_openmetrics(accept: str) -> bool:
    """Return whether an `Accept` header prefers OpenMetrics 1.0 to the text format, or accepts both equally.

    prometheus_client's own choice takes the first format that is listed and ignores quality values.
    """
    openmetrics = text = 0.0
    for name, parameters, quality in _parse_alternatives(accept):
        if name == "application/openmetrics-text" and parameters.get("version", "1.0.0").startswith("1."):
            openmetrics = max(openmetrics, quality)
        elif name in {"text/plain", "text/*"}:
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an `Accept-Encoding` header accepts gzip."""
    qualities = {name: quality for name, _, quality in _parse_alternatives(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _parse_alternatives(header: str) -> Iterable[tuple[str, dict[str, str], float]]:
    """Yield name, parameters and quality of each alternative in a header. A malformed quality counts as 0."""
    for part in header.lower().split(","):
        name, *rest = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        parameters = {}
        for parameter in rest:
            key, _, value = parameter.partition("=")
            parameters[key] = value.strip('"')
            if key == "q":
                match = QUALITY.fullmatch(parameter)
                quality = float(match[1]) if match else 0.0
        yield name, parameters, quality


def _families(collector: Any, *, openmetrics: bool) -> Iterable[RenderedFamily]:
    """Yield each family of a collector as text."""
    if isinstance(collector, (BoundedMetric, MergedFamilyText)):
        name, kind = collector.family()
        yield RenderedFamily(name, _sample_names(name, kind), collector.render(openmetrics=openmetrics), is_ours=True)
        return
    exposition = openmetrics_exposition if openmetrics else text_exposition
    encode: Callable[[Any], bytes] = exposition.generate_latest
    for family in collector.collect():
        created = f"{family.name}_created"
        shown = copy(family)
        shown.samples = [sample for sample in family.samples if sample.name != created]
        if shown.samples:
            text = encode(StaticCollector([shown])).decode().removesuffix("# EOF\n")
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield RenderedFamily(name, _sample_names(family.name, family.type), text, is_ours=False)


def _sample_names(name: str, kind: str) -> list[str]:
    return [name, *(name + suffix for suffix in SUFFIXES.get(kind, ()))]


class InternalCollector:
    """Collects the metrics of fastapi-observe about itself."""

    def __init__(self, limiter: SeriesLimiter, internal_errors: InternalErrors) -> None:
        self._limiter = limiter
        self._internal_errors = internal_errors
        self._version = ""

    def describe(self) -> list[Metric]:
        """Return the families that `collect` yields."""
        return list(self.collect())

    def collect(self) -> Iterator[Metric]:
        """Yield the families with their values now."""
        self._version = self._version or package_version("fastapi-observe")
        info = {"version": self._version}
        yield InfoMetricFamily("fastapi_observe", "The installed version of fastapi-observe.", value=info)
        series = self._limiter.count()
        yield GaugeMetricFamily("fastapi_observe_series", "Label sets of all metrics in this process.", value=series)
        overflow = CounterMetricFamily(
            "fastapi_observe_series_overflow",
            "Uses of a label set that was replaced by the overflow series, in whole or in part.",
            labels=["metric"],
        )
        for metric, count in self._limiter.overflows.copy().items():
            overflow.add_metric([metric], count)
        yield overflow
        errors = CounterMetricFamily(
            "fastapi_observe_internal_errors",
            "Exceptions inside fastapi-observe. They did not affect requests.",
            labels=["site"],
        )
        for site, count in self._internal_errors.counts.copy().items():
            errors.add_metric([site], count)
        yield errors
