"""`HttpClients`: clients of httpx and httpx2, sync and async, that measure each call and pass the trace on."""

from __future__ import annotations

import functools
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from fastapi_observe.clients.http.body import bodies
from fastapi_observe.clients.http.calls import HttpCalls, ObservedClient
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import httpx

    from fastapi_observe.clients.http.external import ExternalClient
    from fastapi_observe.redaction.redactor import Redactor

C = TypeVar("C")

_MODULES = ("httpx", "httpx2")


class HttpClients:
    """The clients of one observability: those it makes, which it closes, and those it was given.

    Nothing of httpx is replaced: the client's own `send`, through which `get`, `stream` and all others go, is wrapped
    on the instance, and one request hook sees each request that it sends, redirects too. Both are public, so proxies
    of the environment, transports, mounts, `auth` and subclasses work as before. A transport of ours would not do:
    given one, httpx ignores the proxies of the environment. What a transport repeats by itself
    (`AsyncHTTPTransport(retries=2)`) is not seen.
    """

    def __init__(
        self,
        external: ExternalClient,
        faults: Callable[[str, BaseException], None],
        redactor: Redactor = DEFAULT_REDACTOR,
    ) -> None:
        self._calls = HttpCalls(external, faults, redactor)
        self._faults = faults
        self._observed: WeakKeyDictionary[Any, ObservedClient] = WeakKeyDictionary()
        self._shared: WeakKeyDictionary[Any, httpx.AsyncClient] = WeakKeyDictionary()
        self._made: WeakSet[httpx.AsyncClient] = WeakSet()
        self._lock = threading.RLock()

    def shared(self, loop: Any = None) -> httpx.AsyncClient:
        """Return the client of an event loop (None: of code outside asyncio), made when it is first asked for."""
        key = self if loop is None else loop
        client = self._shared.get(key)
        if client is None or client.is_closed:
            client = self._shared[key] = self.new()
        return client

    def new(
        self,
        service: str | None = None,
        templates: Iterable[str] = (),
        *,
        propagate: bool | None = None,
        **options: Any,
    ) -> httpx.AsyncClient:
        """Return a new `httpx.AsyncClient`, observed, closed at shutdown; `options` are its own, the rest as below."""
        import httpx  # noqa: PLC0415 - slow to import

        client = self.instrument(httpx.AsyncClient(**options), service, templates, propagate=propagate)
        self._made.add(client)
        return client

    def instrument(
        self, client: C, service: str | None = None, templates: Iterable[str] = (), *, propagate: bool | None = None
    ) -> C:
        """Measure every call of an `httpx` or `httpx2` client, sync or async, and return it. Twice does no more.

        `service` is the metric label and the span's `peer.service` (default: the host). `templates`
        (`["/invoices/{id}"]`) name calls by their path; `extensions={"template": "/invoices/{id}"}` names one call.
        `propagate` says whether the hosts that are asked may know the trace (default: private ones and those of
        `propagate_to`); where a redirect leads to another host, the default holds. Raises `TypeError` for what is no
        such client, `ValueError` for what is no template.
        """
        module = _client_module(client)
        given = cast("Any", client)
        observed = ObservedClient(service, templates, given.base_url.path, propagate=propagate)
        with self._lock:
            if given not in self._observed:
                wrap = _observe_async if isinstance(client, module.AsyncClient) else _observe_sync
                wrap(given, observed, self._calls, module.__name__)
                self._observed[given] = observed
        return client

    def restore(self) -> None:
        """Let every client be what it was; none is closed."""
        with self._lock:
            for client, observed in list(self._observed.items()):
                _restore(client, observed)
            self._observed.clear()
        self._calls.close_abandoned()

    async def close(self) -> None:
        """Close every client that was made here and is not closed; those that were given stay open."""
        clients: set[Any] = {*self._shared.values(), *self._made}
        self._shared.clear()
        self._made.clear()
        for client in clients:
            try:
                await client.aclose()
            except Exception as exc:  # noqa: BLE001 - a client of another loop cannot be closed here
                self._faults("http.close", exc)
        self._calls.close_abandoned()


def _client_module(client: Any) -> Any:
    """Return `httpx` or `httpx2`, whichever `client` is of."""
    for name in _MODULES:
        module = sys.modules.get(name)
        if module is not None and isinstance(client, module.AsyncClient | module.Client):
            return module
    kind = client if isinstance(client, type) else type(client)
    raise TypeError(
        f"{kind.__module__}.{kind.__qualname__} is no client that can be observed: pass a Client or AsyncClient of "
        "httpx or httpx2 (not its class); calls of others are measured by external.call(service, operation)"
    )


def _observe_async(client: Any, observed: ObservedClient, calls: HttpCalls, module: str) -> None:
    plain = client.send
    body = bodies(module)[0]

    async def sending(request: Any) -> None:
        calls.on_request(observed, request)

    @functools.wraps(plain)
    async def send(request: Any, *args: Any, **options: Any) -> Any:
        call = calls.begin(observed, client, request)
        if call is None:
            return await plain(request, *args, **options)
        try:
            response = await plain(request, *args, **options)
        except BaseException as exc:
            call.close(exc)
            raise
        calls.on_response(call, response, body if options.get("stream") else None)
        return response

    _wrap(client, observed, send, sending)


def _observe_sync(client: Any, observed: ObservedClient, calls: HttpCalls, module: str) -> None:
    plain = client.send
    body = bodies(module)[1]

    def sending(request: Any) -> None:
        calls.on_request(observed, request)

    @functools.wraps(plain)
    def send(request: Any, *args: Any, **options: Any) -> Any:
        call = calls.begin(observed, client, request)
        if call is None:
            return plain(request, *args, **options)
        try:
            response = plain(request, *args, **options)
        except BaseException as exc:
            call.close(exc)
            raise
        calls.on_response(call, response, body if options.get("stream") else None)
        return response

    _wrap(client, observed, send, sending)


def _wrap(client: Any, observed: ObservedClient, send: Any, hook: Callable[[Any], Any]) -> None:
    send.observed = observed, client.__dict__.get("send")
    client.send = send
    observed.hook = hook
    observed.keep_hook(client)


def _restore(client: Any, observed: ObservedClient) -> None:
    observed.active = False  # enough where somebody has wrapped `send` since
    hooks = client.event_hooks["request"]
    client.event_hooks["request"] = [hook for hook in hooks if hook is not observed.hook]
    of, before = getattr(client.__dict__.get("send"), "observed", (None, None))
    if of is observed:
        if before is None:
            del client.send
        else:
            client.send = before
