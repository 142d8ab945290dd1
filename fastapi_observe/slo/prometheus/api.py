"""A client of the HTTP API of Prometheus."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import httpx

from fastapi_observe.slo import http_get

if TYPE_CHECKING:
    from collections.abc import Mapping


class UnreachableError(Exception):
    """Prometheus cannot be queried; the message has the URL, the cause and the next step."""


class Prometheus:
    """The API of one Prometheus. Every method raises `UnreachableError`.

    `http_get` limits time and size of a response, and sends a token over plain http to a private address only, unless
    `allow_http_token`.
    """

    def __init__(self, url: str, token: str | None = None, *, allow_http_token: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise UnreachableError(f"invalid Prometheus URL {url!r:.200}; use one such as http://127.0.0.1:9090")
        self.url = url.rstrip("/")
        self._token = token
        self._allow_http_token = allow_http_token

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """Return the `data` of a response of `/api/v1/<path>`."""
        url = f"{self.url}/api/v1/{path}" + (f"?{urlencode(parameters)}" if parameters else "")
        try:
            with http_get.get(url, headers={}, token=self._token, allow_http_token=self._allow_http_token) as response:
                if response.status_code != httpx.codes.OK:
                    raise UnreachableError(f"{self.url} responded {response.status_code} to {path}; {_hint(response)}")
                body = b"".join(http_get.iter_body(response))
            return json.loads(body)["data"]
        except http_get.GetError as error:
            raise UnreachableError(f"cannot read {self.url}: {error.reason}; {error.step}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnreachableError(f"{self.url} is not a Prometheus ({error!s:.200}); correct the URL") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current vector of an expression."""
        result: list[dict[str, Any]] = self.get("query", {"query": expression})["result"]
        return result


def _hint(response: httpx.Response) -> str:
    if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return "pass --token"
    return "use the URL below which /api/v1 is served"
