"""Names of httpx and httpx2 that are not part of their public API."""

from __future__ import annotations

from typing import Any


def reopen_client(client: Any) -> None:
    """Make a closed client usable again; its connection pools open new connections by themselves.

    If the names are gone, the client stays closed.
    """
    unopened = getattr(type(getattr(client, "_state", None)), "UNOPENED", None)
    if unopened is not None:
        client._state = unopened  # noqa: SLF001 - as above
