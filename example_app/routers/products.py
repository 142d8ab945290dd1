"""What there is to buy."""

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel
from sqlalchemy import select

from example_app.database import Product, SessionDep
from fastapi_observe import DatabaseDep

router = APIRouter(prefix="/products", tags=["products"])


class ProductView(BaseModel, from_attributes=True):
    """A product as customers see it."""

    id: int
    name: str
    price_cents: int
    stock: int


@router.get("")
async def list_products(session: SessionDep, db: DatabaseDep) -> list[ProductView]:
    """List all products."""
    statement = select(Product).order_by(Product.id)
    async with db.query("SELECT", table="products", statement=str(statement)):
        products = await session.scalars(statement)
    return [ProductView.model_validate(product) for product in products]


@router.get("/{product_id}")
async def get_product(product_id: int, session: SessionDep, db: DatabaseDep) -> ProductView:
    """Show one product."""
    async with db.query("SELECT", table="products", statement="SELECT ... FROM products WHERE id = ?"):
        product = await session.get(Product, product_id)
    if product is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such product")
    return ProductView.model_validate(product)
