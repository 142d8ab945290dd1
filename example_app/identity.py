"""Authentication: passwords, tokens and `CustomerDep`."""

import asyncio
import hashlib
import hmac
import secrets
from typing import Annotated

from fastapi import Depends, HTTPException, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select

from example_app.database import Customer, SessionDep, Token
from fastapi_observe import ObservabilityDep, traced


@traced("hash password")
def scrypt(password: str, salt: bytes) -> str:
    """Hash a password. It is slow on purpose, so it runs in a thread; its span is still part of the request's trace."""
    digest = hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)
    return f"{salt.hex()}${digest.hex()}"


async def hash_password(password: str) -> str:
    """Return a salted hash."""
    return await asyncio.to_thread(scrypt, password, secrets.token_bytes(16))


async def is_password(password: str, password_hash: str) -> bool:
    """Return whether `password` matches the hash. An empty hash takes as long."""
    salt = bytes.fromhex(password_hash.partition("$")[0])
    return hmac.compare_digest(await asyncio.to_thread(scrypt, password, salt), password_hash)


def token_digest(token: str) -> str:
    """Return the digest of a token, which is what the database stores."""
    return hashlib.sha256(token.encode()).hexdigest()


async def signed_in(
    session: SessionDep,
    observe: ObservabilityDep,
    bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())],
) -> Customer:
    """Return the customer of the bearer token, whose id is on everything that the request reports from here on.

    Responds with 401 if there is none.
    """
    statement = select(Customer).join(Token).where(Token.digest == token_digest(bearer.credentials))
    customer = await session.scalar(statement)
    if customer is None:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "log in first: POST /login")
    observe.set(user_id=customer.id)
    return customer


CustomerDep = Annotated[Customer, Depends(signed_in)]
"""The customer who is signed in."""
