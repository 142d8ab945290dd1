"""Products on sale."""

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel
from sqlalchemy import select

from example_app.database import Product, SessionDep

router = APIRouter(prefix="/products", tags=["products"])


class ProductView(BaseModel, from_attributes=True):
    """A product, as shown to customers."""

    id: int
    name: str
    price_cents: int
    stock: int


@router.get("")
async def list_products(session: SessionDep) -> list[ProductView]:
    """List all products."""
    products = await session.scalars(select(Product).order_by(Product.id))
    return [ProductView.model_validate(product) for product in products]


@router.get("/{product_id}")
async def get_product(product_id: int, session: SessionDep) -> ProductView:
    """Show one product."""
    product = await session.get(Product, product_id)
    if product is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such product")
    return ProductView.model_validate(product)
