"""Registration and login."""

import secrets
from typing import Annotated

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from example_app.database import Customer, SessionDep, Token
from example_app.identity import hash_password, is_password, token_digest
from fastapi_observe import LogDep, MetricsDep

router = APIRouter(tags=["customers"])

ADDRESS_TAKEN = "this address is registered already"

Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", max_length=254)]
Password = Annotated[SecretStr, Field(min_length=8, max_length=200)]


class Registration(BaseModel):
    """A new customer."""

    email: Email
    name: str = Field(min_length=1, max_length=100)
    password: Password


class Login(BaseModel):
    """Credentials of a customer."""

    email: Email
    password: Password


class CustomerView(BaseModel, from_attributes=True):
    """A customer, as shown to themselves."""

    id: int
    email: str
    name: str


class LoginView(BaseModel):
    """A token for `Authorization: Bearer <token>`."""

    token: str


@router.post("/customers", status_code=status.HTTP_201_CREATED)
async def register(body: Registration, session: SessionDep, metrics: MetricsDep, log: LogDep) -> CustomerView:
    """Register a customer; 409 if the address is taken."""
    statement = select(Customer.id).where(Customer.email == body.email)
    taken = await session.scalar(statement)
    if taken is not None:
        raise HTTPException(status.HTTP_409_CONFLICT, ADDRESS_TAKEN)
    password_hash = await hash_password(body.password.get_secret_value())
    customer = Customer(email=body.email, name=body.name, password_hash=password_hash)
    session.add(customer)
    try:
        await session.commit()
    except IntegrityError:  # registered by another request meanwhile
        raise HTTPException(status.HTTP_409_CONFLICT, ADDRESS_TAKEN) from None
    metrics.business.user_registered()
    log.info("customer registered", customer_id=customer.id)
    return CustomerView.model_validate(customer)


@router.post("/login")
async def log_in(body: Login, session: SessionDep, metrics: MetricsDep, log: LogDep) -> LoginView:
    """Return a token for the right password. A 401 does not reveal whether address or password was wrong."""
    statement = select(Customer).where(Customer.email == body.email)
    customer = await session.scalar(statement)
    matches = await is_password(body.password.get_secret_value(), customer.password_hash if customer else "")
    if customer is None or not matches:
        log.warn("login refused")  # noqa: G010 - no stdlib logger
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "wrong address or password")
    token = secrets.token_urlsafe(32)
    session.add(Token(digest=token_digest(token), customer_id=customer.id))
    await session.commit()
    metrics.business.user_logged_in()
    log.info("customer logged in", customer_id=customer.id)
    return LoginView(token=token)
