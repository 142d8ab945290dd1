"""`RequestFilter`: requests that are excluded from all or some signals, by method, path or URL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from fastapi_observe.records.signal import SIGNAL_BITS
from fastapi_observe.requests.routing import path_in_app

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from starlette.types import Scope

    from fastapi_observe.settings.model import ObserveSettings


class Exclusion(NamedTuple):
    """An entry of `exclude_paths`. `method` is empty for all methods; `is_prefix` if the path ended in `*`."""

    method: str
    path: str
    is_prefix: bool


def parse_exclusion(text: str) -> Exclusion:
    """Parse an entry of `exclude_paths`: `/health`, `/internal/*`, `OPTIONS *` or `GET /health`."""
    method, _, path = text.rpartition(" ")
    return Exclusion(method.strip().upper(), path.removesuffix("*"), path.endswith("*"))


class RequestFilter:
    """Decides which signals a request is excluded from, as bits (`records.signal.SIGNAL_BITS`). False without rules.

    `paths` are the entries for each bit mask. `patterns` are regular expressions that exclude from all signals.
    """

    def __init__(self, paths: Mapping[int, Sequence[str]], patterns: Sequence[str], all_signals: int) -> None:
        self._of_paths = type(self)(paths, (), all_signals) if patterns else self
        self._all_signals = all_signals
        self._exact: dict[tuple[str, str], int] = {}
        self._prefixes: list[tuple[str, str, int]] = []
        for signals, entries in paths.items():
            for method, path, is_prefix in map(parse_exclusion, entries):
                if is_prefix:
                    self._prefixes.append((method, path, signals))
                else:
                    self._exact[method, path] = self._exact.get((method, path), 0) | signals
        self._patterns = [re.compile(pattern) for pattern in patterns]

    @classmethod
    def from_settings(cls, settings: ObserveSettings) -> Self:
        """Return the filter with the options of `ObserveSettings`."""
        all_signals = sum(SIGNAL_BITS.values())
        paths = {all_signals: settings.exclude_paths}
        paths |= {SIGNAL_BITS[name]: entries for name, entries in settings.exclude_from.items()}
        return cls(paths, settings.exclude_urls, all_signals)

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefixes or self._patterns)

    def excluded_signals(self, scope: Scope) -> int:
        """Return the signals that do not report this request; 0 for a request that all signals report.

        Compares the whole path. Where there is a `root_path`, `excluded_below_root` compares the rest.
        """
        path, method = scope.get("path", ""), scope.get("method", "")
        exact = self._exact
        signals = exact.get(("", path), 0) | exact.get((method, path), 0)
        for of_method, prefix, excluded in self._prefixes:
            if path.startswith(prefix) and (not of_method or of_method == method):
                signals |= excluded
        if self._patterns:
            url = _url_without_query(scope)
            if any(pattern.search(url) for pattern in self._patterns):
                return self._all_signals
        return signals

    def excluded_below_root(self, scope: Scope) -> int:
        """Return the signals that do not report this request because of its path within the app."""
        return self._of_paths.excluded_signals({"path": path_in_app(scope), "method": scope.get("method", "")})


def _url_without_query(scope: Scope) -> str:
    """Return the URL in which OpenTelemetry's ASGI instrumentation searches the patterns of excluded URLs."""
    host = next((value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"), "")
    if not host:
        address, port = scope.get("server") or ("0.0.0.0", 80)  # noqa: S104 - as there; nothing is bound
        host = address if port in {80, None} else f"{address}:{port}"
    return f"{scope.get('scheme', 'http')}://{host}{scope.get('path', '')}"
