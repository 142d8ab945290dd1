"""Trust in callers: whose trace context, baggage and request id are accepted, and how many traces they can force."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from comparison import Server, ask, http_scope, websocket_scope
from fastapi import FastAPI, Request
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry, generate_latest
from tools import held

from fastapi_observe import ObserveSettings, SettingsError
from fastapi_observe.internal.networks import parse_address
from fastapi_observe.requests.trust import MAX_CACHED_PEERS, MAX_FORWARDED_ADDRESSES, TrustPolicy
from fastapi_observe.traces import sampling
from fastapi_observe.traces.sampling import RateLimitedSampler, TraceRateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conftest import Seen

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
PRIVATE = ("10.1.2.3", 50000)
NOTHING: dict[str, Any] = {}
PUBLIC = ("203.0.113.9", 50000)


def make_app() -> FastAPI:
    """Make an app that says what it was given."""
    app = FastAPI()

    @app.get("/")
    async def root(request: Request) -> dict[str, Any]:
        at = trace.get_current_span().get_span_context()
        return {
            "trace": f"{at.trace_id:032x}",
            "state": at.trace_state.to_header(),
            "baggage": dict(baggage.get_all()),
            "header": request.headers.get("traceparent"),
        }

    @app.websocket("/ws")
    async def ws(websocket: Any) -> None:
        await websocket.accept()
        await websocket.close()

    return app


def call(app: FastAPI, client: Any, *headers: tuple[bytes, bytes], times: int = 1) -> list[dict[bytes, bytes]]:
    """Send requests from `client`; return the headers of the responses."""

    async def run() -> list[dict[bytes, bytes]]:
        found = []
        for _ in range(times):
            scope = http_scope("/", client=client, headers=[(b"host", b"shop.example"), *headers])
            server = Raw([{"type": "http.request", "body": b"", "more_body": False}])
            await app(scope, server.receive, server.send)
            found.append(dict(server.headers))
        return found

    return asyncio.run(run())


class Raw(Server):
    """Keeps the headers of the response as they were sent."""

    headers: Iterable[tuple[bytes, bytes]] = ()

    async def send(self, message: Any) -> None:
        """Take a message of the app."""
        if message["type"] == "http.response.start":
            self.headers = message["headers"]
        await super().send(message)


# Who is trusted


@pytest.mark.parametrize(
    ("client", "headers", "trusted"),
    [
        (("127.0.0.1", 1), {}, True),
        (("127.8.9.1", 1), {}, True),
        (("::1", 1), {}, True),
        (("10.255.0.1", 1), {}, True),
        (("172.16.0.1", 1), {}, True),
        (("172.32.0.1", 1), {}, False),
        (("192.168.3.4", 1), {}, True),
        (("100.64.0.1", 1), {}, True),
        (("100.128.0.1", 1), {}, False),
        (("fc00::1", 1), {}, True),
        (("fe80::1%eth0", 1), {}, True),
        (("::ffff:10.0.0.1", 1), {}, True),
        (("::ffff:8.8.8.8", 1), {}, False),
        (("8.8.8.8", 1), {}, False),
        (("2001:db8::1", 1), {}, False),
        (None, {}, True),
        (("", 0), {}, True),
        (("testclient", 50000), {}, True),
        (("localhost", 1), {}, False),
        (("2130706433", 1), {}, False),
        (("127.0.0.1" + " " * 100, 1), {}, False),
        (("8.8.8.8", 1), {b"x-forwarded-for": b"127.0.0.1"}, False),
        (("8.8.8.8", 1), {b"forwarded": b"for=127.0.0.1"}, False),
        (("10.0.0.1", 1), {b"x-forwarded-for": b"8.8.8.8"}, False),
        (("10.0.0.1", 1), {b"x-forwarded-for": b"10.0.0.2, 8.8.8.8"}, False),
        (("10.0.0.1", 1), {b"x-forwarded-for": b"10.0.0.2, 8.8.8.8, 10.0.0.3"}, False),
        (("10.0.0.1", 1), {b"x-forwarded-for": b"10.0.0.2:4711, 192.168.0.1"}, True),
        (("10.0.0.1", 1), {b"x-forwarded-for": b"[fc00::1]:4711"}, True),
        (("10.0.0.1", 1), {b"x-forwarded-for": b""}, False),
        (("10.0.0.1", 1), {b"x-forwarded-for": b"\xff\xfe"}, False),
        (("10.0.0.1", 1), {b"x-forwarded-for": b"10.0.0.2," * MAX_FORWARDED_ADDRESSES + b"10.0.0.2"}, False),
        (("10.0.0.1", 1), {b"x-real-ip": b"8.8.8.8"}, False),
        (("10.0.0.1", 1), {b"x-real-ip": b"10.0.0.8"}, True),
        (("10.0.0.1", 1), {b"forwarded": b'for="[2001:db8::1]:4711";proto=http'}, False),
        (("10.0.0.1", 1), {b"forwarded": b'For="[fc00::1]:4711";by=10.0.0.1, for=10.0.0.2;host=x'}, True),
        (("10.0.0.1", 1), {b"forwarded": b"for=10.0.0.2, for=unknown"}, False),
        (("10.0.0.1", 1), {b"forwarded": b"for=_hidden"}, False),
        (("10.0.0.1", 1), {b"forwarded": b"proto=http"}, False),
        (("testclient", 1), {b"x-forwarded-for": b"testclient"}, False),
        # the server has replaced the peer by what a header says
        (("10.0.0.1", 0), {}, False),
        (("testclient", 0), {}, False),
        (("10.0.0.1", 0), {b"x-forwarded-for": b"10.0.0.1"}, False),
        (("10.0.0.1", 4711), {b"x-forwarded-for": b"10.0.0.1:4711"}, False),
        (("10.0.0.1", 4711), {b"x-forwarded-for": b"10.0.0.2, 10.0.0.1"}, False),
        (None, {b"x-forwarded-for": b"10.0.0.1"}, True),
        (None, {b"x-forwarded-for": b"8.8.8.8"}, False),
        # a proxy that shows itself
        (("10.0.0.1", 1), {b"via": b"1.1 proxy"}, False),
        (("10.0.0.1", 1), {b"x-forwarded-host": b"shop.example"}, False),
        (("10.0.0.1", 1), {b"x-forwarded-proto": b"https"}, False),
        (None, {b"x-forwarded-proto": b"https"}, False),
        (("10.0.0.1", 1), {b"via": b"1.1 proxy", b"x-forwarded-for": b"10.0.0.2"}, True),
        (("10.0.0.1", 1), {b"cf-connecting-ip": b"8.8.8.8"}, False),
        (("10.0.0.1", 1), {b"cf-connecting-ip": b"8.8.8.8", b"x-forwarded-for": b"10.0.0.2"}, False),
        (("10.0.0.1", 1), {b"true-client-ip": b"10.0.0.2"}, True),
        (("10.0.0.1", 1), {b"x-client-ip": b"8.8.8.8"}, False),
        (("8.8.8.8", 1), {b"x-client-ip": b"10.0.0.2"}, False),
    ],
)
def test_private_peers(client: Any, headers: dict[bytes, bytes], *, trusted: bool) -> None:
    """The TCP peer decides; headers of proxies can only take trust away."""
    trust = TrustPolicy("private")
    for _ in range(2):  # the second response is the remembered one
        assert trust.trusts_peer({"client": client, "headers": [*headers.items()]}, headers) is trusted


def test_a_repeated_header() -> None:
    """All values are read, not only the last one."""
    headers = [(b"x-forwarded-for", b"8.8.8.8"), (b"x-forwarded-for", b"10.0.0.1")]
    assert not TrustPolicy("private").trusts_peer({"client": PRIVATE, "headers": headers}, dict(headers))


@pytest.mark.parametrize(
    ("who", "private", "public", "unix"),
    [
        ("private", True, False, True),
        ("always", True, True, True),
        ("never", False, False, False),
        (("203.0.113.0/24",), False, True, False),
        (("private", "203.0.113.9"), True, True, True),
        (lambda scope: scope["client"] == PUBLIC, False, True, False),
    ],
)
def test_other_policies(who: Any, *, private: bool, public: bool, unix: bool) -> None:
    """All peers, none, those of networks, or those that a function accepts."""
    trust = TrustPolicy(who)
    assert trust.trusts_peer({"client": PRIVATE}, {}) is private
    assert trust.trusts_peer({"client": PUBLIC}, {}) is public
    assert trust.trusts_peer({"client": None}, {}) is unix


def test_the_cache_of_peers_is_bounded() -> None:
    """Many different peers do not make it grow."""
    trust = TrustPolicy("private")
    full = 0
    for number in range(3 * MAX_CACHED_PEERS):
        assert not trust.trusts_peer({"client": (f"2001:db8::{number:06x}", 1)}, {})
        full = full or (number == MAX_CACHED_PEERS and held(trust))
    assert 0 < held(trust) <= 1.1 * full
    assert parse_address("10.0.0.1") is not None


@pytest.mark.parametrize("option", ["trust_incoming", "metrics_access"])
def test_the_setting_is_checked(option: str) -> None:
    """A misspelt keyword, an invalid network and an empty value are errors that list what is accepted."""
    for wrong in ("privat", "10.0.0.0/33", "", (), 7, ("private", "always")):
        with pytest.raises(SettingsError, match=rf"{option}: .* expected private, always, never, or networks"):
            ObserveSettings(**{**NOTHING, option: wrong})
    settings = ObserveSettings(**{**NOTHING, option: "Private, 203.0.113.0/24"})
    assert getattr(settings, option) == ("private", "203.0.113.0/24")


# What is trusted


def test_a_private_peer_continues_its_trace(observed: Callable[..., Seen]) -> None:
    """Parent, state, baggage and request id are accepted."""
    seen = observed(app := make_app(), capture_query_parameters=())
    headers = (PARENT, (b"tracestate", b"a=1"), (b"baggage", b"user=admin"), (b"x-request-id", b"abcdefgh-1"))
    (answer,) = call(app, PRIVATE, *headers)
    (span,) = seen.server_spans
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    assert not span.links
    assert answer[b"x-request-id"] == b"abcdefgh-1"


@pytest.mark.parametrize("extra", [(), ((b"tracestate", b"a=1"), (b"baggage", b"user=admin"))])
@pytest.mark.parametrize("own", [True, False])
def test_a_public_peer_is_linked(observed: Callable[..., Seen], extra: Any, *, own: bool) -> None:
    """The request starts a new trace with a link; state, baggage and request id are not accepted."""
    options: dict[str, Any] = {} if own else {"tracer_provider": TracerProvider()}
    seen = observed(app := make_app(), **options)
    (answer,) = call(app, PUBLIC, PARENT, *extra, (b"x-request-id", b"abcdefgh-1"))
    (span,) = seen.server_spans
    assert span.parent is None
    assert span.kind is SpanKind.SERVER
    (link,) = span.links
    assert f"{link.context.trace_id:032x}-{link.context.span_id:016x}" == f"{TRACE}-{SPAN}"
    assert not link.context.trace_state
    assert span.context is not None
    assert not span.context.trace_state
    assert f"{span.context.trace_id:032x}" != TRACE
    assert answer[b"x-request-id"].decode() == f"{span.context.trace_id:032x}"


def test_an_invalid_traceparent_is_not_linked(observed: Callable[..., Seen]) -> None:
    """An invalid `traceparent` has no effect."""
    seen = observed(app := make_app())
    call(app, PUBLIC, (b"traceparent", b"00-nonsense-01"))
    (span,) = seen.server_spans
    assert (span.parent, [*span.links]) == (None, [])


def test_the_app_sees_its_own_headers(observed: Callable[..., Seen]) -> None:
    """Headers that are not accepted are still passed to the app; their baggage is not."""
    observed(app := make_app())
    scope = http_scope("/", client=PUBLIC, headers=[PARENT, (b"baggage", b"user=admin"), (b"tracestate", b"a=1")])
    server = Server([{"type": "http.request", "body": b"", "more_body": False}])
    answer = asyncio.run(ask(app, scope, server, []))
    body = answer.messages[1]["body"].decode()
    assert f'"header":"00-{TRACE}-{SPAN}-01"' in body
    assert '"baggage":{}' in body
    assert '"state":""' in body


def test_websockets_of_public_peers(observed: Callable[..., Seen]) -> None:
    """Such a connection starts a new trace."""
    seen = observed(app := make_app())
    scope = websocket_scope("/none", client=PUBLIC, headers=[PARENT])
    asyncio.run(ask(app, scope, Server([{"type": "websocket.connect"}], leaves=False), []))
    (span,) = seen.server_spans
    assert (span.parent, len(span.links)) == (None, 1)


def test_public_peers_cannot_force_sampling(observed: Callable[..., Seen]) -> None:
    """The sampler's rate holds for public peers, each in a trace of its own, whatever their flags say."""
    seen = observed(app := make_app(), sample_ratio=0.05, log_level="fatal")
    answers = call(app, PUBLIC, PARENT, times=2000)
    kept = [span.context.trace_id for span in seen.server_spans if span.context is not None]
    assert 40 < len(kept) < 160  # within six standard deviations of 100
    assert len({answer[b"x-request-id"] for answer in answers}) == 2000
    assert len(set(kept)) == len(kept)


def test_a_function_that_raises_trusts_no_peer(observed: Callable[..., Seen]) -> None:
    """It is called once for a request, and its exception is counted."""
    asked: Counter[str] = Counter()

    def who(scope: Any) -> bool:
        asked[scope["path"]] += 1
        raise LookupError("no such peer")

    seen = observed(app := make_app(), trust_incoming=who)
    (answer,) = call(app, PRIVATE, PARENT, (b"x-request-id", b"abcdefgh-1"))
    assert asked["/"] == 1
    assert answer[b"x-request-id"] != b"abcdefgh-1"
    assert sum(seen.observe.internal_errors.counts.values()) == 1


@pytest.mark.parametrize("kind", ["__await__", "__next__", "__anext__"])
def test_a_function_without_a_decision_trusts_no_peer(observed: Callable[..., Seen], kind: str) -> None:
    """An awaitable or an iterator is counted as an internal error, not as true."""
    names = {kind, "__aiter__" if kind == "__anext__" else "__iter__"}
    result = type("Result", (), dict.fromkeys(names, lambda _: None))()
    seen = observed(app := make_app(), trust_incoming=lambda _: result)
    (answer,) = call(app, PRIVATE, PARENT, (b"x-request-id", b"abcdefgh-1"))
    assert answer[b"x-request-id"] != b"abcdefgh-1"
    assert sum(seen.observe.internal_errors.counts.values()) == 1


# How many are kept


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """Read it."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the rate limit."""
    made = Clock()
    monkeypatch.setattr(sampling, "monotonic", made)
    return made


def test_the_limit_is_per_second(clock: Clock) -> None:
    """So many per second, then none until the next one; the rest is counted."""
    quota = TraceRateLimit(3)
    assert [quota.allow() for _ in range(5)] == [True, True, True, False, False]
    clock.now += 1
    assert [quota.allow() for _ in range(4)] == [True, True, True, False]
    assert quota.rate_limited == 3


def test_less_than_one_a_second(clock: Clock) -> None:
    """A limit of 0.25 is one trace in four seconds; None is no limit."""
    quota = TraceRateLimit(0.25)
    taken = []
    for _ in range(8):
        taken.append(quota.allow())
        clock.now += 1
    assert taken == [True, False, False, False, True, False, False, False]
    assert all(TraceRateLimit(None).allow() for _ in range(1000))


def test_callers_cannot_force_more_traces_than_the_limit(
    observed: Callable[..., Seen], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A sampled flag of a caller counts against the limit, and one warning a minute says so."""
    app = make_app()
    seen = observed(app, sample_ratio=0.0, tail_sampling=[], max_traces_per_second=5, capture_logging=False)
    answers = call(app, PRIVATE, PARENT, times=20)
    assert len(seen.server_spans) == 5
    assert sum(b"traceresponse" in answer for answer in answers) == 5
    clock.now += 1
    call(app, PRIVATE, PARENT, times=20)
    assert len(seen.server_spans) == 10
    assert seen.sample("fastapi_observe_traces_rate_limited_total") == 30
    (warning,) = [record.getMessage() for record in caplog.records if "max_traces_per_second" in record.getMessage()]
    assert "more than 5 sampled traces in 1 s" in warning


@pytest.mark.usefixtures("clock")
def test_the_samplers_own_decisions_are_not_limited(observed: Callable[..., Seen]) -> None:
    """With `sample_ratio=1` every trace is sampled, of a caller or new, and so is every root span of the user."""
    app = make_app()
    seen = observed(app, sample_ratio=1.0, max_traces_per_second=2)
    call(app, PRIVATE, PARENT, times=20)
    call(app, PRIVATE, times=20)
    assert len(seen.server_spans) == 40
    for _ in range(5):
        with seen.observe.tracing.span("root"), seen.observe.tracing.span("child"):
            pass
    assert Counter(span.name for span in seen.spans if span.name != "GET /") == {"root": 5, "child": 5}
    assert seen.sample("fastapi_observe_traces_rate_limited_total") == 0


def test_the_rate_limited_sampler() -> None:
    """The SDK's sampler limits traces of remote parents only, unless it samples all."""
    rate_limit = TraceRateLimit(1)
    off, on = RateLimitedSampler(ALWAYS_OFF, rate_limit), RateLimitedSampler(ALWAYS_ON, rate_limit)
    everything = RateLimitedSampler(ALWAYS_ON, rate_limit, samples_all=True)
    remote = trace.set_span_in_context(
        trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=True, trace_flags=trace.TraceFlags(1)))
    )

    def decide(sampler: RateLimitedSampler, context: Context) -> int:
        return int(sampler.should_sample(context, 1, "name").decision.value)

    assert not any(decide(off, remote) for _ in range(3))
    assert rate_limit.rate_limited == 0
    assert off.get_description() == ALWAYS_OFF.get_description()
    assert all(decide(on, Context()) for _ in range(3))
    assert [bool(decide(on, remote)) for _ in range(3)] == [True, False, False]
    assert all(decide(everything, remote) for _ in range(3))
    quota = TraceRateLimit(1)
    registry = CollectorRegistry()
    registry.register(quota)
    assert b"fastapi_observe_traces_rate_limited_total 0.0" in generate_latest(registry)
