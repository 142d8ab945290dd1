"""A client of the HTTP API of Prometheus, with limits on time and size."""

from __future__ import annotations

import json
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from fastapi_observe.internal.networks import is_private_host

READ_TIMEOUT: Final = 10.0
"""Seconds that Prometheus may send nothing."""

TOTAL_TIMEOUT: Final = 60.0
"""Seconds that one response may take."""

MAX_RESPONSE_BYTES: Final = 32 * 1_048_576


class UnreachableError(Exception):
    """Prometheus cannot be queried; the message has the URL, the cause and the next step."""


class Prometheus:
    """The API of one Prometheus. Every method raises `UnreachableError`.

    Proxies of the environment are not used and redirects not followed, so the token reaches this host only. A token is
    not sent over plain http to a public host, unless `allow_http_token` is set.
    """

    def __init__(self, url: str, token: str | None = None, *, allow_http_token: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise UnreachableError(f"invalid Prometheus URL {url!r:.200}; use one such as http://127.0.0.1:9090")
        if token and parts.scheme == "http" and not (allow_http_token or is_private_host(parts.hostname)):
            raise UnreachableError(
                f"refusing to send the token over plain http to the public host {parts.hostname}; use https, or "
                "--allow-http-token"
            )
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str, **parameters: str) -> Any:
        """Return the `data` of a response of `/api/v1/<path>`."""
        try:
            with (
                httpx.Client(headers=self._headers, timeout=READ_TIMEOUT, trust_env=False) as client,
                client.stream("GET", f"{self.url}/api/v1/{path}", params=parameters) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise UnreachableError(f"{self.url} responded {response.status_code} to {path}; {_hint(response)}")
                return json.loads(_read_body(response))["data"]
        except (httpx.RemoteProtocolError, httpx.DecodingError) as error:
            raise UnreachableError(f"{self.url} is not an HTTP server ({error!s:.200}); correct the URL") from None
        except (OSError, httpx.TransportError) as error:
            raise UnreachableError(
                f"cannot reach {self.url}: {error!s:.200}; start Prometheus, or correct the URL"
            ) from None
        except (httpx.InvalidURL, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnreachableError(f"{self.url} is not a Prometheus ({error!s:.200}); correct the URL") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current vector of an expression."""
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result


def _hint(response: httpx.Response) -> str:
    if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return "pass --token"
    return "use the URL below which /api/v1 is served"


def _read_body(response: httpx.Response) -> bytes:
    """Read a body up to the limit; a longer one is cut, which makes it invalid JSON."""
    deadline, body = monotonic() + TOTAL_TIMEOUT, bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            break
        if monotonic() > deadline:
            raise TimeoutError(f"the response is not complete after {TOTAL_TIMEOUT:.0f} seconds")
    return bytes(body[:MAX_RESPONSE_BYTES])
