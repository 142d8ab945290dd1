"""`Access`: who may read the metrics."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from fastapi_observe.requests.trust import TrustPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from starlette.types import Scope

CHALLENGE: Final = (b"www-authenticate", b"Bearer")
"""Header of a 401 (RFC 6750)."""

_SCHEME: Final = b"bearer "


class MetricsAccess:
    """Says whether a scrape is let in: by its bearer token if there is one to ask for, else by who is trusted.

    Tokens are compared in a time that does not tell how much of them was right.
    """

    __slots__ = ("_token", "_trust")

    def __init__(self, who: str | Iterable[str] | Callable[[Any], object], token: str | None) -> None:
        self._token = None if token is None else token.encode()
        self._trust = TrustPolicy(who)

    @property
    def requires_token(self) -> bool:
        """Whether who is refused is told so (401); else there is nothing to be seen (404)."""
        return self._token is not None

    def allows(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Tell whether the peer of `scope` may read the metrics; `headers` have lower-case names."""
        if self._token is None:
            return self._trust.trusts_peer(scope, headers)
        sent = [value for name, value in scope.get("headers") or () if name == b"authorization"]
        given = sent[0] if len(sent) == 1 else b""  # of two, another reader may have believed the other
        return given[: len(_SCHEME)].lower() == _SCHEME and hmac.compare_digest(given[len(_SCHEME) :], self._token)
