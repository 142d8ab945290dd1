"""`MetricsAccess`: decides which requests may read the metrics."""

from __future__ import annotations

import hmac
import logging
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from fastapi_observe.internal.networks import address_in
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.internal.version import documentation_url
from fastapi_observe.requests.trust import TrustPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from starlette.types import Scope

CHALLENGE: Final = (b"www-authenticate", b"Bearer")
"""Header of a 401 response (RFC 6750)."""

DOCTOR_AGENT: Final = "fastapi-observe doctor"
"""The user agent of the command `doctor`, which also asks as a client that should be denied."""

PUBLIC_PEERS: Final = ("203.0.113.7", "198.51.100.7", "192.0.2.7")
"""Addresses of that client, for documentation (RFC 5737), in three networks: `metrics_access` may name one of them."""

PUBLIC_PEER: Final = PUBLIC_PEERS[0]
"""The address that is tried first."""

CONSOLE_HEADER: Final = b"x-fastapi-observe-console"
"""Header of metrics for `doctor`: the path of the console, empty if there is none."""

_LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

_SCHEME: Final = b"bearer "


class MetricsAccess:
    """Allows a scrape by its bearer token, if a token is configured, else by a `TrustPolicy`."""

    __slots__ = ("_is_function", "_throttle", "_token", "_trust")

    def __init__(self, policy: str | Iterable[str] | Callable[[Any], object], token: str | None) -> None:
        self._token = None if token is None else token.encode()
        self._trust = TrustPolicy(policy, trusts_addresses=False)
        self._is_function = callable(policy)
        self._throttle = LogThrottle()

    @property
    def requires_token(self) -> bool:
        """Whether a denied request gets a 401. Without a token it gets the app's own response, normally 404."""
        return self._token is not None

    def allows(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request may read the metrics. `headers` have lower-case names."""
        if self._token is None:
            return self._trust.trusts_peer(scope, headers)
        sent = [value for name, value in scope.get("headers") or () if name == b"authorization"]
        # A proxy may have checked the other one of two headers.
        value = sent[0] if len(sent) == 1 else b""
        # compare_digest takes the same time however many characters are right.
        return value[: len(_SCHEME)].lower() == _SCHEME and hmac.compare_digest(value[len(_SCHEME) :], self._token)

    def log_denied(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Log a warning with the reason why a request was denied, and the next step. At most once a minute.

        A request of `doctor` is an information, and does not delay the warning about another one.
        """
        of_doctor = is_from_doctor(scope)
        if not self._throttle.allow("doctor" if of_doctor else "denied"):
            return
        if self._token is not None:
            reason, step = "it has no valid bearer token", "send the value of metrics_token"
        elif self._is_function:
            reason, step = "the function in metrics_access does not allow it", "check that function"
        else:
            reason = self._trust.reason_for_distrust(scope, headers)
            step = "connect to the app directly, or set metrics_access, metrics_token or metrics_port"
        if of_doctor:
            logging.getLogger("fastapi_observe").info("Denied a request of doctor for the metrics: %s.", reason)
            return
        logging.getLogger("fastapi_observe").warning(
            "Denied a request for the metrics: %s. If it is your scraper, %s. See %s Logged at most once a minute.",
            reason,
            step,
            documentation_url("how-to/behind-a-proxy"),
        )


def is_from_doctor(scope: Scope) -> bool:
    """Return whether a request is one that `doctor` sends from this machine. A proxy in between changes its headers."""
    headers = dict(scope.get("headers") or ())
    forwarded = headers.get(b"x-forwarded-for")
    claimed = None if forwarded is None else forwarded.decode("latin-1")
    if headers.get(b"user-agent") != DOCTOR_AGENT.encode() or claimed not in {None, *PUBLIC_PEERS}:
        return False
    peer = str((scope.get("client") or ("",))[0])
    # A server that trusts the header takes the peer from it.
    return address_in(peer, _LOOPBACK) or (claimed is not None and peer == claimed)
