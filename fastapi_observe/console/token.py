"""The token of the console that all workers of a server agree on."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fastapi_observe.console.discovery import read_private_file
from fastapi_observe.workers.directory import app_identity, find_supervisor, open_root, process_identity

if TYPE_CHECKING:
    from pathlib import Path

SECRET_FILE: Final = "console-secret"  # noqa: S105 - a name
SECRET_BYTES: Final = 32


def make_token(directory: str | None, service: str) -> str:
    """Return the token of this start of the server.

    A browser's requests reach any of several workers, and `--reload` replaces the worker: with a supervisor the token
    is derived from its identity, the app and a secret of this user. It is random in a single process, and where no
    directory is safe.
    """
    supervisor = find_supervisor(os.getpid()) if hasattr(os, "geteuid") else None
    if supervisor is not None:
        with suppress(OSError):
            secret = _read_secret(open_root(directory))
            start = f"{process_identity(supervisor.pid)} {app_identity(service)}"
            return hmac.new(secret, start.encode("utf-8", "backslashreplace"), "sha256").hexdigest()
    return secrets.token_urlsafe(24)


def _read_secret(root: Path) -> bytes:
    """Return the secret in the directory of this user, and make it if there is none. Raises OSError."""
    path = root / SECRET_FILE
    if not path.exists():
        new = root / f".{SECRET_FILE}-{secrets.token_hex(8)}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
            # Complete from the start, and never another one: two workers may start at once.
            with suppress(FileExistsError):
                path.hardlink_to(new)
        finally:
            new.unlink()
    secret = read_private_file(path, SECRET_BYTES)
    if len(secret) != SECRET_BYTES:
        raise OSError(f"{path} is damaged; remove it")
    return secret
