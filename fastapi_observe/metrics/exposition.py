"""How metrics are shown: the format that the client asks for, rendered fast, compressed if it may be."""

from __future__ import annotations

import re
from copy import copy
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import exposition as stock
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.openmetrics import exposition as stock_openmetrics

from fastapi_observe.internal.version import package_version
from fastapi_observe.metrics.series import YIELD_SLEEP, BoundedMetric
from fastapi_observe.metrics.shared.shown import MergedFamilyText, MultiprocessRegistry, StaticCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.budget import SeriesLimiter

ScrapeResponse = tuple[list[tuple[bytes, bytes]], bytes]
"""Headers and body."""

TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"

MAX_RESPONSE_BYTES: Final = 16_777_216
"""Most bytes of one answer; families that do not fit are left out."""

ENCODE_CHUNK_SIZE: Final = 65_536
"""Characters that are encoded at one time."""

QUALITY: Final = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
"""RFC 9110, 12.4.2."""

GZIP_LEVEL: Final = 1
"""The text repeats itself so much that more effort brings little: a scrape should be short."""

SUFFIXES: Final = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}
"""What the sample names of a family add to its name, by type."""


def render(registries: Iterable[Any], accept: str, accept_encoding: str, faults: InternalErrors) -> ScrapeResponse:
    """Return the headers and the body that show the registries.

    A family whose name an earlier one has taken is left out; a collector that raises is left out and counted.
    """
    openmetrics, gzip = prefers_openmetrics(accept), accepts_gzip(accept_encoding)
    body = ResponseBody(gzip=gzip)
    taken: set[str] = set()
    for registry in registries:
        for collector in collectors_of(registry):
            sleep(YIELD_SLEEP)
            try:
                for names, text in _families(collector, openmetrics=openmetrics):
                    if not taken.isdisjoint(names):
                        continue
                    taken.update(names)
                    if body.size + len(text) > MAX_RESPONSE_BYTES:
                        raise OverflowError(f"{names[0]} does not fit")  # noqa: TRY301 - counted and told below
                    body.add(text)
            except OverflowError as exc:
                faults("metrics.too_large", exc)
            except Exception as exc:  # noqa: BLE001 - a user's collector raises what it likes
                faults("collect", exc)
    if openmetrics:
        body.add("# EOF\n")
    content = body.end()
    headers = [(b"content-type", OPENMETRICS if openmetrics else TEXT), (b"vary", b"accept, accept-encoding")]
    if gzip:
        headers.append((b"content-encoding", b"gzip"))
    headers.append((b"content-length", str(len(content)).encode()))
    return headers, content


class ResponseBody:
    """The body of an answer, encoded and compressed piece by piece: a whole one would hold the interpreter too long."""

    def __init__(self, *, gzip: bool) -> None:
        self.size = 0  # characters so far
        self._parts: list[bytes] = []
        self._compress: Any = None
        if gzip:
            import zlib  # noqa: PLC0415 - needed by scrapes only

            self._compress = zlib.compressobj(GZIP_LEVEL, wbits=31)

    def add(self, text: str) -> None:
        """Add a text; what is no UTF-8 is written as its escape."""
        self.size += len(text)
        for at in range(0, len(text), ENCODE_CHUNK_SIZE):
            sleep(YIELD_SLEEP)
            data = text[at : at + ENCODE_CHUNK_SIZE].encode("utf-8", "backslashreplace")
            self._parts.append(data if self._compress is None else self._compress.compress(data))

    def end(self) -> bytes:
        """Return all of it."""
        if self._compress is not None:
            self._parts.append(self._compress.flush())
        return b"".join(self._parts)


def prefers_openmetrics(accept: str) -> bool:
    """Tell whether the client asks for OpenMetrics 1.0 at least as much as for the text format.

    prometheus_client's own choice takes the first that is named and does not look at the q-values.
    """
    openmetrics = text = 0.0
    for name, parameters, quality in _ranges(accept):
        if name == "application/openmetrics-text" and parameters.get("version", "1.0.0").startswith("1."):
            openmetrics = max(openmetrics, quality)
        elif name in {"text/plain", "text/*"}:
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether the client takes a body that is compressed with gzip."""
    qualities = {name: quality for name, _, quality in _ranges(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _ranges(header: str) -> Iterable[tuple[str, dict[str, str], float]]:
    """Read a header of alternatives: name, parameters, q-value (0 if it is malformed)."""
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


def collectors_of(registry: Any) -> list[Any]:
    """Return the collectors of a registry, each on its own, so that one that raises spoils no other.

    The registry keeps them in a private dict (since prometheus_client 0.4); another kind of registry is collected as
    a whole.
    """
    if isinstance(registry, MultiprocessRegistry):
        return list(registry.shown())
    collectors = list(getattr(registry, "_collector_to_names", (registry,)))
    target = getattr(registry, "get_target_info", lambda: None)()
    return (
        [StaticCollector([InfoMetricFamily("target", "Target metadata", value=target)]), *collectors]
        if target
        else collectors
    )


def _families(collector: Any, *, openmetrics: bool) -> Iterable[tuple[list[str], str]]:
    """Yield each family of a collector: the sample names it takes, and its text."""
    if isinstance(collector, (BoundedMetric, MergedFamilyText)):
        yield _names(*collector.family()), collector.render(openmetrics=openmetrics)
        return
    encode: Callable[[Any], bytes] = stock_openmetrics.generate_latest if openmetrics else stock.generate_latest
    for family in collector.collect():
        created = f"{family.name}_created"
        shown = copy(family)
        shown.samples = [sample for sample in family.samples if sample.name != created]
        if shown.samples:
            yield _names(family.name, family.type), encode(StaticCollector([shown])).decode().removesuffix("# EOF\n")


def _names(name: str, kind: str) -> list[str]:
    return [name, *(name + suffix for suffix in SUFFIXES.get(kind, ()))]


class InternalCollector:
    """What fastapi-observe says about itself, read at scrape."""

    def __init__(self, budget: SeriesLimiter, faults: InternalErrors) -> None:
        self._budget = budget
        self._faults = faults
        self._version = ""

    def describe(self) -> list[Metric]:
        """Name what `collect` yields."""
        return list(self.collect())

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        self._version = self._version or package_version("fastapi-observe")
        info = {"version": self._version}
        yield InfoMetricFamily("fastapi_observe", "The installed version of fastapi-observe.", value=info)
        series = self._budget.count()
        yield GaugeMetricFamily("fastapi_observe_series", "Label sets that are kept, of all metrics.", value=series)
        overflow = CounterMetricFamily(
            "fastapi_observe_series_overflow", "How often a label set found no place.", labels=["metric"]
        )
        for metric, count in self._budget.overflows.copy().items():
            overflow.add_metric([metric], count)
        yield overflow
        errors = CounterMetricFamily(
            "fastapi_observe_internal_errors",
            "Failures inside fastapi-observe, kept from the request.",
            labels=["site"],
        )
        for site, count in self._faults.counts.copy().items():
            errors.add_metric([site], count)
        yield errors
