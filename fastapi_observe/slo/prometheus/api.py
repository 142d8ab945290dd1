"""What `verify` asks of a Prometheus: its HTTP API, read with bounds."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from time import monotonic
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from fastapi_observe.internal.networks import is_private_host

READ_TIMEOUT: Final = 10.0
"""Seconds that Prometheus may be silent."""

TOTAL_TIMEOUT: Final = 60.0
"""Seconds that one answer may take."""

MAX_RESPONSE_BYTES: Final = 32 * 1_048_576


class UnreachableError(Exception):
    """Prometheus cannot be asked; says the URL, the reason and the next step."""


class Prometheus:
    """The API of one Prometheus; no proxy of the environment is used. Every method raises `UnreachableError`.

    A token goes over plain http to a private host only, unless `insecure`.
    """

    def __init__(self, url: str, token: str | None = None, *, allow_http_token: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise UnreachableError(f"{url!r:.200} is no URL of a Prometheus; give one such as http://127.0.0.1:9090")
        if token and parts.scheme == "http" and not (allow_http_token or is_private_host(parts.hostname)):
            raise UnreachableError(
                f"the token would go over plain http to {parts.hostname}: use https, or --allow-http-token"
            )
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def get(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer of `/api/v1/<path>`."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        request = urllib.request.Request(f"{self.url}/api/v1/{path}{query}", headers=self._headers)  # noqa: S310 - checked above
        try:
            with self._opener.open(request, timeout=READ_TIMEOUT) as answer:
                body = _read_body(answer)
            return json.loads(body[:MAX_RESPONSE_BYTES])["data"]  # longer answers are cut, and so no JSON
        except urllib.error.HTTPError as error:
            step = "give --token" if error.code in {401, 403} else "give the URL that /api/v1 stands below"
            raise UnreachableError(f"{self.url} answers {error.code} to {path}: {step}") from None
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", error)
            raise UnreachableError(f"cannot reach {self.url}: {reason}; start Prometheus, or correct the URL") from None
        except http.client.HTTPException as error:
            raise UnreachableError(f"{self.url} is no HTTP server ({error!s:.200}); correct the URL") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnreachableError(f"{self.url} is no Prometheus ({error!s:.200}); correct the URL") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the vector that an expression has now."""
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result


def _read_body(answer: http.client.HTTPResponse) -> bytes:
    until, body = monotonic() + TOTAL_TIMEOUT, bytearray()
    while len(body) <= MAX_RESPONSE_BYTES and (part := answer.read1(MAX_RESPONSE_BYTES)):
        body += part
        if monotonic() > until:
            raise TimeoutError(f"its answer is not over after {TOTAL_TIMEOUT:.0f} seconds")
    return bytes(body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects would take the token along."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None
