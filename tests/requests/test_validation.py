"""Validation errors are counted by names that the app declared, never by names that the client chose."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import pytest
from fastapi import APIRouter, Body, Cookie, Depends, FastAPI, File, Header, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, RootModel
from starlette.testclient import TestClient
from tools import volume
from typing_extensions import TypeAliasType, TypedDict

from fastapi_observe.requests.validation import (
    MAX_COUNTED_ERRORS,
    MAX_LOCATION_PARTS,
    declared_names,
    validation_error_locations,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

T = TypeVar("T")


class Item(BaseModel):
    """A model that other models contain."""

    price: int
    wide: int = Field(1, alias="Wide")


class Strict(BaseModel):
    """A model that forbids what it does not know."""

    model_config = ConfigDict(extra="forbid")

    items: list[Item] = []
    by_name: dict[str, Item] = {}


class Tree(BaseModel):
    """A model that contains itself."""

    value: int = 0
    left: Tree | None = None


class Cat(BaseModel):
    """One side of a union."""

    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    """The other side of it."""

    kind: Literal["dog"]
    tricks: int


class Page(BaseModel, Generic[T]):
    """A generic model."""

    rows: list[T]


class Choices(BaseModel):
    """A model with names that are chosen among several."""

    first: int = Field(validation_alias=AliasChoices("one", AliasPath("two", 0)))


@dataclass
class Point:
    """A dataclass whose annotations are texts."""

    across: int
    inner: Item | None = None


class Options(TypedDict):
    """A TypedDict that contains a dataclass."""

    point: Point


Ids = TypeAliasType("Ids", list[Item])


class Filters(BaseModel):
    """Parameters of a query, header or cookie in one model."""

    model_config = ConfigDict(extra="forbid")

    page_size: int = 1


def limit_of(limit: int) -> int:
    """Take a parameter that endpoints ask for by way of this dependency."""
    return limit


class Caught:
    """What an app's validation errors are called."""

    def __init__(self, endpoint: Callable[..., Any], path: str = "/") -> None:
        self.app = FastAPI()
        self.app.post(path)(endpoint)
        self.errors: list[tuple[str, str]] = []
        self.app.exception_handler(RequestValidationError)(self._note)
        self.client = TestClient(self.app)

    async def _note(self, request: Any, exc: RequestValidationError) -> Any:
        from starlette.responses import PlainTextResponse  # noqa: PLC0415 - beside its use

        self.errors = validation_error_locations(exc.errors(), request.scope["route"])
        return PlainTextResponse("wrong", 422)

    def __call__(self, path: str = "/", **options: Any) -> set[str]:
        """Send a wrong request; return the names of its fields."""
        self.errors = []
        assert self.client.post(path, **options).status_code == 422
        return {field for field, _ in self.errors}


async def takes_strict(body: Strict) -> None:
    """Take a model that forbids extras."""


async def takes_tree(body: Tree) -> None:
    """Take a recursive model."""


async def takes_union(body: Annotated[Cat | Dog, Field(discriminator="kind")]) -> None:
    """Take a tagged union."""


async def takes_loose_union(body: Cat | Dog | list[Item]) -> None:
    """Take a union that is tried from left to right."""


async def takes_page(body: Page[Item]) -> None:
    """Take a generic model."""


async def takes_choices(body: Choices) -> None:
    """Take a model of aliases."""


async def takes_options(body: Options) -> None:
    """Take a TypedDict."""


async def takes_ids(body: Annotated[Ids, Body()]) -> None:
    """Take a named type."""


async def takes_mapping(body: dict[str, dict[str, int]]) -> None:
    """Take a dictionary of dictionaries."""


async def takes_root(body: RootModel[dict[str, int]]) -> None:
    """Take a model that is one value."""


async def takes_file(upload: Annotated[UploadFile, File()], amount: Annotated[int, Body()]) -> None:
    """Take a form."""


@pytest.mark.parametrize(
    ("endpoint", "body", "fields"),
    [
        (takes_strict, {"items": [{"price": "x"}]}, {"body.items.[].price"}),
        (takes_strict, {"items": [{"price": 1, "Wide": "x"}]}, {"body.items.[].Wide"}),
        (takes_strict, {"by_name": {"evil-1": {"price": "x"}}}, {"body.by_name.*.price"}),
        (takes_strict, {"evil-2": 1, "evil-3": 2}, {"body.*"}),
        (takes_tree, {"left": {"left": {"value": "x"}}}, {"body.left.left.value"}),
        (takes_union, {"kind": "cat", "lives": "x"}, {"body.*.lives"}),
        (takes_union, {"kind": "evil-4"}, {"body"}),
        (takes_loose_union, {"kind": "dog", "tricks": "x"}, {"body.*.lives", "body.*.kind", "body.*.tricks", "body.*"}),
        (takes_page, {"rows": [{"price": "x"}]}, {"body.rows.[].price"}),
        (takes_choices, {"one": "x"}, {"body.one"}),
        (takes_options, {"point": {"across": "x"}}, {"body.point.across"}),
        (takes_options, {"point": {"across": 1, "inner": {"price": "x"}}}, {"body.point.inner.price"}),
        (takes_ids, [{"price": "x"}], {"body.[].price"}),
        (takes_mapping, {"evil-5": {"evil-6": "x"}}, {"body.*.*"}),
        (takes_root, {"evil-7": "x"}, {"body.*"}),
    ],
)
def test_body(endpoint: Callable[..., Any], body: Any, fields: set[str]) -> None:
    """The fields of every kind of model are reported; a name that the client may choose is `*`, an index `[]`."""
    assert Caught(endpoint)(json=body) == fields


def test_forms() -> None:
    """The fields of a form are reported like parameters."""
    assert Caught(takes_file)(data={"amount": "x"}, files={"evil": b""}) == {"body.upload", "body.amount"}


def test_parameters() -> None:
    """Path, query, header and cookie parameters, aliases and those of dependencies are reported."""

    async def endpoint(
        number: int,
        depth: Annotated[int, Query(alias="Depth-Of")],
        x_token: Annotated[int, Header()],
        session: Annotated[int, Cookie()],
        limited: Annotated[int, Depends(limit_of)],
    ) -> None:
        """Take one of each kind."""

    caught = Caught(endpoint, "/{number}")
    caught.client.cookies.set("session", "x")
    assert caught("/x", params={"Depth-Of": "x", "limit": "x"}, headers={"x-token": "x"}) == {
        "path.number",
        "query.Depth-Of",
        "query.limit",
        "header.x-token",
        "cookie.session",
    }


@pytest.mark.parametrize("kind", [Query, Header, Cookie])
def test_models_of_parameters(kind: Any) -> None:
    """The fields of a parameter model are reported; a forbidden extra field is `*`."""

    async def endpoint(filters: Any) -> None:
        """Take a model of parameters."""

    endpoint.__annotations__["filters"] = Annotated[Filters, kind()]
    caught = Caught(endpoint)
    caught.client.cookies.update({"page_size": "x", "evil-cookie": "1"})
    found = caught(params={"page_size": "x", "evil-query": "1"}, headers={"page-size": "x", "evil-header": "1"})
    place = kind.__name__.lower()
    declared = {f"{place}.page_size", f"{place}.page-size"}
    assert found <= declared | {f"{place}.*", "header.cookie"}
    assert f"{place}.*" in found
    assert found & declared


def test_names_that_cannot_be_resolved() -> None:
    """The fields of a dataclass are reported even if its annotations cannot be resolved."""

    @dataclass
    class Local:
        near: Missing  # type: ignore[name-defined]  # noqa: F821 - that is the point

    field = SimpleNamespace(name="body", alias="body", field_info=SimpleNamespace(annotation=Local))
    dependant = SimpleNamespace(body_params=[field])
    assert "near" in declared_names(SimpleNamespace(dependant=dependant))


def test_without_a_route() -> None:
    """Without a matched route only the kinds of parameters are reported."""
    assert validation_error_locations([{"loc": ("body", "price"), "type": "missing"}], None) == [("body.*", "missing")]
    assert validation_error_locations([{"loc": (), "type": "json_invalid"}], None) == [("*", "json_invalid")]


def test_errors_and_depth_are_bounded() -> None:
    """Of a thousand errors a fixed number is reported, each with a fixed depth."""
    caught = Caught(takes_strict)
    caught(json={"items": [{"price": "x"}] * 1000})
    assert len(caught.errors) == MAX_COUNTED_ERRORS
    deep: dict[str, Any] = {"value": "x"}
    for _ in range(50):
        deep = {"left": deep}
    assert Caught(takes_tree)(json=deep) == {"body" + ".left" * (MAX_LOCATION_PARTS - 1)}


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["items", "by_name", "price", "path"]), inner, max_size=3
        )
    ),
    max_leaves=10,
)
STRICT = Caught(takes_strict)
STRICT_PARTS = {"body", "query", "path", "header", "cookie", "items", "by_name", "price", "wide", "Wide", "*", "[]"}


@given(body=JSON)
@settings(max_examples=volume(150), deadline=None)
def test_reported_names_are_declared(body: Any) -> None:
    """Whatever a client sends, every reported part was declared."""
    STRICT.errors = []
    STRICT.client.post("/", json=body)
    assert {part for field, _ in STRICT.errors for part in field.split(".")} <= STRICT_PARTS


def test_an_app_counts_them(observed: Callable[..., Seen]) -> None:
    """The names come from the matched route: included, mounted in an included router, or none."""

    async def endpoint(body: Strict) -> None:
        """Take a model."""

    sub = FastAPI()
    sub.post("/items")(endpoint)
    router = APIRouter()
    router.post("/items")(endpoint)
    router.mount("/sub", sub)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.mount("/direct", sub)
    seen = observed(app)
    client = TestClient(app)
    for path in ("/v1/items", "/v1/sub/items", "/direct/items"):
        client.post(path, json={"items": [{"price": "x"}], "evil": 1})
    counted = {
        (dict(labels)["endpoint"], dict(labels)["field"]): value
        for labels, value in seen.samples("request_validation_errors_total").items()
    }
    for path in {line["fields"]["endpoint"] for line in seen.request_lines} - {"unmatched"}:
        assert (counted[path, "body.items.[].price"], counted[path, "body.*"]) == (1, 1)
    assert len(counted) >= 4
