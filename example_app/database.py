"""Tables and engines of both services: SQLite files, or PostgreSQL if DATABASE_URL is set."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.requests import HTTPConnection

PAST_CUSTOMERS = (
    *("Ada", "Alan", "Barbara", "Donald", "Dorothy", "Edsger"),
    *("Frances", "Grace", "Katherine", "Ken", "Margaret", "Niklaus"),
)
"""More than `repeated_query_threshold` (default: 10), so one query for each is reported as N+1."""


class ShopTables(DeclarativeBase):
    """Tables of the shop. Amounts are whole cents, since SQLite has no decimal type."""


class Product(ShopTables):
    """A product on sale."""

    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price_cents: Mapped[int]
    stock: Mapped[int]


class Customer(ShopTables):
    """A customer. An empty hash matches no password."""

    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    password_hash: Mapped[str]


class Token(ShopTables):
    """A login; only the digest of the token is stored."""

    __tablename__ = "tokens"
    digest: Mapped[str] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))


class Order(ShopTables):
    """A customer's order: `open`, then `paid` or `declined`."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"), index=True)
    status: Mapped[str] = mapped_column(default="open")
    total_cents: Mapped[int]


class OrderLine(ShopTables):
    """One product of an order, at its price when it was ordered."""

    __tablename__ = "order_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"))
    quantity: Mapped[int]
    price_cents: Mapped[int]


class PaymentTables(DeclarativeBase):
    """Tables of the payments service."""


class Charge(PaymentTables):
    """One attempt to charge a card."""

    __tablename__ = "charges"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    amount_cents: Mapped[int]
    currency: Mapped[str]
    accepted: Mapped[bool]


def database_url(name: str) -> str:
    """Return DATABASE_URL with its async driver, else a file `name` in EXAMPLE_DIR or the temporary directory."""
    url = os.environ.get("DATABASE_URL")
    if url:
        scheme, rest = url.split("://", 1)
        return f"{'postgresql+asyncpg' if scheme in {'postgres', 'postgresql'} else scheme}://{rest}"
    return f"sqlite+aiosqlite:///{Path(os.environ.get('EXAMPLE_DIR', tempfile.gettempdir())) / name}.sqlite"


def make_engine(name: str, **options: Any) -> AsyncEngine:
    """Return the engine of one service. It connects with the first query."""
    # Errors are logged; without hide_parameters the message of an IntegrityError contains addresses and hashes.
    return create_async_engine(database_url(name), hide_parameters=True, **options)


@asynccontextmanager
async def open_database(
    engine: AsyncEngine, tables: type[DeclarativeBase]
) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Create missing tables and yield the session factory. Disconnect at the end."""
    try:
        await _create(engine, tables)
        yield async_sessionmaker(engine, expire_on_commit=False)
    finally:
        await engine.dispose()


async def _create(engine: AsyncEngine, tables: type[DeclarativeBase]) -> None:
    """Create missing tables. Retry if another worker creates them at the same time."""
    for retries_left in reversed(range(len(tables.metadata.tables) + 1)):
        try:
            async with engine.begin() as connection:
                await connection.run_sync(tables.metadata.create_all)
        except DBAPIError:
            if not retries_left:
                raise
        else:
            return


async def open_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Yield a session of the database that the app's lifespan opened."""
    async with connection.state.sessions() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(open_session)]


async def seed(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Add products, and past customers who cannot log in, to an empty shop."""
    async with sessions() as session:
        if await session.scalar(select(func.count()).select_from(Product)):
            return
        session.add_all(
            [
                Product(name="Coffee, 1 kg", price_cents=1250, stock=1000),
                Product(name="Slow-roasted coffee, 1 kg", price_cents=1913, stock=1000),
                Product(name="Espresso machine", price_cents=129900, stock=1000),
                Product(name="The last cup", price_cents=500, stock=0),
            ]
        )
        past = [Customer(email=f"{name.lower()}@example.com", name=name, password_hash="") for name in PAST_CUSTOMERS]
        session.add_all(past)
        try:
            await session.flush()
        except IntegrityError:  # another worker has added them at the same time
            await session.rollback()
            return
        session.add_all([Order(customer_id=customer.id, status="paid", total_cents=1250) for customer in past])
        await session.commit()
