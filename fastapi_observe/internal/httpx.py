"""Names of httpx and httpx2 that are not part of their public API."""

from __future__ import annotations

from typing import Any, Final

_CONNECTING: Final = {"HTTPTransport", "AsyncHTTPTransport"}


def reopen_client(client: Any) -> None:
    """Make a closed client usable again; its connection pools open new connections by themselves.

    If the names are gone, the client stays closed.
    """
    unopened = getattr(type(getattr(client, "_state", None)), "UNOPENED", None)
    if unopened is not None:
        client._state = unopened  # noqa: SLF001 - as above


def opens_connections(client: Any) -> bool:
    """Return whether every transport of a client is one of httpx that connects to a server.

    False if the names are gone, and with another transport, which may call an app in this process.
    """
    mounted = getattr(client, "_mounts", {}).values()
    return all(
        any(base.__name__ in _CONNECTING for base in type(transport).__mro__)
        for transport in (getattr(client, "_transport", None), *filter(None, mounted))
    )
