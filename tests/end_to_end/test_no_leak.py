"""200 secrets, each in twelve places of an app with everything switched on: none of them is reported.

An arbitrary word in free text cannot be recognized as a secret. Where only a text is reported (a captured header, the
user agent, the host, the message of an exception or log line) a password is written as `password=...` or between a
user name and an `@`, and credentials with a known prefix as they are. Where the place names a secret (a path parameter
`token`, a query, a cookie, a field `password`, a literal of SQL) each secret is written alone.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import string
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from driver import ask, with_client
from fastapi import FastAPI, Request
from loguru import logger
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool
from starlette.testclient import TestClient

from fastapi_observe import install
from fastapi_observe.export.otlp.spans import SpanEncoder
from fastapi_observe.testing import assert_no_leak, capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

PLACES = 12
LETTERS = string.ascii_letters + string.digits
URL_SAFE = LETTERS + "-_"


class Secret:
    """One secret: `text` as it is written, `core` its secret part, `known` if it has a known form."""

    def __init__(self, text: str, core: str = "", *, known: bool = True) -> None:
        self.text = text
        self.core = core or text
        self.known = known

    @property
    def in_text(self) -> str:
        """The secret as it is written into free text."""
        return self.text if self.known else f"password={self.text}"


def secrets() -> Iterator[Secret]:
    """Make 200 secrets, the same in every run: ten of each of twenty forms."""
    dice = random.Random(6)  # noqa: S311 - nobody's secrets

    def some(alphabet: str, length: int) -> str:
        return "".join(dice.choices(alphabet, k=length))

    def part(**claims: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

    for number in range(10):
        signature = some(URL_SAFE, 43)
        yield Secret(f"{part(alg='HS256')}.{part(sub=number)}.{signature}", signature)
        yield Secret("AKIA" + some(string.ascii_uppercase + string.digits, 16))
        yield Secret("ASIA" + some(string.ascii_uppercase + string.digits, 16))
        yield Secret(f"gh{dice.choice('pousr')}_" + some(LETTERS, 36))
        yield Secret("github_pat_" + some(LETTERS + "_", 59))
        yield Secret("glpat-" + some(URL_SAFE, 20))
        yield Secret("sk_live_" + some(LETTERS, 24))
        yield Secret("rk_live_" + some(LETTERS, 24))
        yield Secret("sk-" + some(LETTERS, 48))
        yield Secret(f"xox{dice.choice('abprs')}-" + some(string.digits, 11) + "-" + some(LETTERS, 24))
        yield Secret("AIza" + some(URL_SAFE, 35))
        yield Secret("npm_" + some(LETTERS, 36))
        yield Secret("pypi-" + some(URL_SAFE, 60))
        key = some(LETTERS + "+/", 64)
        yield Secret(f"-----BEGIN RSA PRIVATE KEY----- {key} -----END RSA PRIVATE KEY-----", key)
        yield Secret(card(dice.choice("23456") + some(string.digits, dice.randint(11, 17))))
        token = some(URL_SAFE + ".~+", 30)
        yield Secret(f"Bearer {token}", token)
        user = base64.b64encode(f"ann:{some(LETTERS, 12)}1".encode()).decode()
        yield Secret(f"Basic {user}", user)
        name = dice.choice(["api_key", "client_secret", "apiKey", "access-token", "PGPASSWORD", "jwt"])
        value = some(LETTERS, 12)
        yield Secret(f"{name}={value}", value)
        yield Secret(some(LETTERS, 8), known=False)
        yield Secret(some(LETTERS + "!$*-_.,~", 16), known=False)


def card(digits: str) -> str:
    """Return digits with a valid Luhn check digit."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[::-2]]
    return digits + str(-(sum(doubled) + sum(map(int, digits[-2::-2]))) % 10)


class Login(BaseModel):
    """The body of a login."""

    user: str
    password: int  # wrong on purpose: what is refused is often repeated


def make_app() -> FastAPI:  # noqa: C901 - one endpoint for each place
    """Return an app that reports secrets by mistake in every way."""
    app = FastAPI()
    answer = httpx.MockTransport(lambda _: httpx.Response(200, text="ok"))
    app.state.http = httpx.AsyncClient(transport=answer)

    def report(level: str, message: str, **fields: Any) -> None:
        getattr(app.state.observe.log, level)(message, **fields)

    @app.get("/reset/{token:path}")
    async def reset(token: str) -> str:
        return "ok"

    @app.get("/plain")
    async def plain() -> str:
        return "ok"

    @app.post("/login")
    async def login(login: Login) -> str:
        return "ok"

    @app.post("/echo")
    async def echo(request: Request) -> None:
        body = await request.body()
        report("error", f"refused {body.decode()}", body=json.loads(body))
        raise ValueError(f"cannot read {body!r}")

    @app.post("/crash")
    async def crash(request: Request) -> None:
        written = (await request.body()).decode()
        try:
            raise RuntimeError(f"upstream said {written}")  # noqa: TRY301 - it needs a traceback
        except RuntimeError as exc:
            app.state.observe.tracing.record_error(exc)
            raise LookupError(written) from exc

    @app.post("/call")
    async def call(request: Request) -> str:
        value = quote((await request.body()).decode(), safe="")
        url = f"http://ann:{value}@billing.example.com/invoices?key={value}"
        await app.state.http.get(url)
        report("error", f"no answer from {url}", url=url)
        raise ConnectionError(f"GET {url} failed")

    @app.post("/log")
    async def log(request: Request) -> str:
        value = (await request.body()).decode()
        details = {"user": "ann", "settings": [{"clientSecret": value}], "db_password2": value}
        app.state.observe.log.info("logged in", password=value, session_id=[value], details=details)
        logger.bind(api_key=value).info("bound {}", 7)
        logging.getLogger("shop").warning("extra", extra={"access-token": value, "details": details})
        with app.state.observe.tracing.span("login", password=value, details=details):
            app.state.observe.tracing.add_event("step", auth_token=value)
            app.state.observe.tracing.set_attributes(secret=value)
        with app.state.observe.operation("charge", card_number=value) as operation:
            operation.add_details(cvv=value)
        return "ok"

    @app.post("/local")
    async def local(request: Request) -> str:
        value = (await request.body()).decode()
        parts = [value, {"x": value}]
        raise KeyError(len(parts))

    add_statements(app)
    return app


def add_statements(app: FastAPI) -> None:
    """Write values into SQL, by hand."""
    # One connection, which any thread may close.
    anywhere = {"check_same_thread": False}
    engine = app.state.engine = create_engine("sqlite://", poolclass=StaticPool, connect_args=anywhere)

    def select(what: str) -> str:
        return f"SELECT {what}"

    @app.post("/sql")
    async def sql(request: Request) -> str:
        value = (await request.body()).decode().replace("'", "''").replace(":", "\\:")
        with engine.begin() as connection:
            connection.execute(text(select(f"'{value}' AS x")))
            try:
                connection.execute(text(select(f"x FROM nothing WHERE password = '{value}'")))
            except SQLAlchemyError:
                logging.getLogger("shop").exception("query failed")
        async with app.state.observe.db.query("SELECT", statement=select(f"x FROM y WHERE z = '{value}'")):
            return "ok"


async def place(app: FastAPI, secret: Secret) -> None:
    """Send one secret to each of the twelve places."""
    one_line, in_text, body = secret.text.replace("\n", " "), secret.in_text, secret.text.encode()
    sent: list[tuple[str, dict[str, Any]]] = [
        (f"/reset/{secret.text}", {}),
        (f"/plain?q={quote(secret.text, safe='')}&{quote(in_text, safe='=')}", {}),
        ("/plain", {"headers": {"authorization": one_line, "x-api-key": one_line, "x-note": in_text}}),
        ("/plain", {"headers": {"cookie": f"session={one_line}; a={one_line}"}}),
        ("/login", {"method": "POST", "body": json.dumps({"user": "ann", "password": secret.text}).encode()}),
        ("/echo", {"method": "POST", "body": json.dumps({"user": "ann", "password": secret.text}).encode()}),
        ("/crash", {"method": "POST", "body": in_text.encode()}),
        ("/sql", {"method": "POST", "body": body}),
        ("/call", {"method": "POST", "body": body}),
        ("/plain", {"headers": {"host": secret.text if secret.known else f"ann:{secret.text}@shop.example.org"}}),
        ("/plain", {"headers": {"user-agent": f"app/1 ({in_text})", "referer": f"https://ann:{quote(one_line)}@x/"}}),
        ("/log", {"method": "POST", "body": body}),
        ("/local", {"method": "POST", "body": body}),
    ]
    assert len(sent) == PLACES + 1  # a body is echoed in two ways
    for path, how in sent:
        how["headers"] = {"content-type": "application/json", **how.get("headers", {})}
        await ask(app, path, **how)


OPTIONS: dict[str, Any] = {
    "capture_request_headers": ["authorization", "x-api-key", "cookie", "x-note", "referer", "host"],
    "capture_response_headers": ["set-cookie"],
    "log_level": "debug",
    "slow_query_threshold": 1e-9,
    "repeated_query_threshold": 1,
}


async def test_no_secret_is_reported(observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str]) -> None:
    """None of 200 secrets in any of twelve places is in spans as they are exported, lines, output or `/metrics`.

    By default every third secret is tried; CI and the soak try all.
    """
    app = make_app()
    exporter = InMemorySpanExporter()
    processors = (SimpleSpanProcessor(exporter),)
    seen = observed(app, engines=[app.state.engine], span_processors=processors, **OPTIONS)
    seen.observe.instrument_client(app.state.http)
    tried = list(secrets())
    assert len({secret.core for secret in tried}) == 200
    if not {"OBSERVE_ALL_FAULTS", "OBSERVE_SOAK"} & {*os.environ}:
        tried = tried[::3]
    found: list[tuple[str, str]] = []
    for secret in tried:
        await place(app, secret)
        seen.observe.flush()
        output = capsys.readouterr()
        spans = exporter.get_finished_spans()
        assert len(spans) > PLACES
        assert output.out.count("HTTP request completed") > PLACES
        encoder = SpanEncoder(lambda: spans[0].resource)  # noqa: B023 - used at once
        exported = encoder.request([(*encoder.encode(span), 0) for span in spans]).decode("utf-8", "replace")
        exporter.clear()
        forms = {secret.core, quote(secret.core, safe=""), quote(secret.core), json.dumps(secret.core)[1:-1]}
        for where, shown in (("spans", exported), ("lines", output.out), ("stderr", output.err)):
            found += [(where, around(shown, form)) for form in forms if form in shown]
    shown = seen.text
    found += [("/metrics", secret.core) for secret in tried if secret.core in shown]
    assert found == [], "\n".join(map(str, found))
    assert seen.observe.internal_errors.counts == {}
    await app.state.http.aclose()
    app.state.engine.dispose()


def around(shown: str, form: str) -> str:
    """Return the text around a secret that was found."""
    at = shown.index(form)
    return shown[max(0, at - 120) : at + len(form) + 20]


# What users check their own apps with


def test_assert_no_leak_finds_every_report() -> None:
    """`assert_no_leak` names every place in which a word was reported, without repeating the word."""
    app = FastAPI()
    observe = install(app, sample_ratio=0.0)
    try:

        @app.get("/")
        async def root() -> str:
            observe.log.info("harmless", notes=["swordfish"])
            observe.log.info("the word is swordfish")
            observe.metrics.counter("notes_total", "Notes.", ("note",)).labels("swordfish").inc()
            with observe.tracing.span("step", note="swordfish"):
                observe.tracing.add_event("swordfish seen")
                sys.stdout.write("swordfish on its way\n")
            return "ok"

        with capture(app) as seen, TestClient(app) as client:
            client.get("/")
            client.get("/", params={"password": "hunter2"})
            assert_no_leak("hunter2")
            with pytest.raises(AssertionError) as raised:
                assert_no_leak("swordfish")
        with pytest.raises(AssertionError):
            seen.assert_no_leak("swordfish")
        for place in (
            "the log line 'harmless'",
            "line 'the word is sw… (9 characters)'",
            "the span 'step'",
            "event",
            "/metrics",
            "standard output",
        ):
            assert place in str(raised.value)
        assert "swordfish" not in str(raised.value)
        assert [span.name for span in seen.spans if span.kind.name == "SERVER"] == ["GET /", "GET /"]
        assert sum(line["message"] == "HTTP request completed" for line in seen.lines) == 2
        assert "notes_total" in seen.metrics
        with TestClient(app) as client:
            client.get("/")
        assert sum(line["message"] == "HTTP request completed" for line in seen.lines) == 2
    finally:
        observe.close()


def test_assert_no_leak_says_what_it_needs() -> None:
    """Without an installed app, outside a block, or for a short word, the error says what to do."""
    with pytest.raises(RuntimeError, match="call install"):
        capture(FastAPI())
    with pytest.raises(RuntimeError, match="inside `with capture"):
        assert_no_leak("hunter2")
    app = FastAPI()
    observe = install(app, tracing=False, metrics=False, logs=False)
    try:
        with capture(app) as seen, pytest.raises(ValueError, match="four characters or more"):
            seen.assert_no_leak("abc")
        seen.assert_no_leak("hunter2")
    finally:
        observe.close()


def test_nested_captures_and_links() -> None:
    """Lines still reach the outer capture; resources and links are searched too."""
    app = FastAPI()
    observe = install(app, service_name="swordfish", sample_ratio=1.0, trust_incoming="never")
    pushed: list[bytes] = []
    observe.logs.push = pushed.append
    try:
        with capture(app), capture(app) as seen, TestClient(with_client(app, "203.0.113.9", 1)) as client:
            client.get("/nowhere", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
        assert len(seen.spans[0].links) == 1
        count = len(seen.spans)
        with TestClient(app) as client:
            client.get("/nowhere")
        assert len(seen.spans) == count  # it sees no more
        with pytest.raises(AssertionError, match="resource"):
            seen.assert_no_leak("swordfish")
        assert pushed
        assert observe.logs.push == pushed.append
    finally:
        observe.close()
