"""`HttpClients`: instruments clients of httpx and httpx2, sync and async, and creates httpx clients."""

from __future__ import annotations

import functools
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from fastapi_observe.clients.http.body import body_classes
from fastapi_observe.clients.http.calls import HttpCalls, ObservedClient
from fastapi_observe.internal.httpx import reopen_client
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import httpx

    from fastapi_observe.clients.http.external import ExternalClient
    from fastapi_observe.redaction.redactor import Redactor

C = TypeVar("C")

_MODULES = ("httpx", "httpx2")


class HttpClients:
    """The clients of one app: those created here, which it closes, and those it was given.

    Two public seams of a client are used: `send`, which `get`, `stream` and all others call, is wrapped on the
    instance, and a request hook is called for each request sent, redirects included. Environment proxies, transports,
    mounts, `auth` and subclasses work as before; with a transport of our own httpx would ignore environment proxies.
    Retries inside a transport (`AsyncHTTPTransport(retries=2)`) are not visible.
    """

    def __init__(
        self,
        external: ExternalClient,
        internal_errors: Callable[[str, BaseException], None],
        redactor: Redactor = DEFAULT_REDACTOR,
    ) -> None:
        self._calls = HttpCalls(external, internal_errors, redactor)
        self._internal_errors = internal_errors
        self._observed: WeakKeyDictionary[Any, ObservedClient] = WeakKeyDictionary()
        self._shared: WeakKeyDictionary[Any, httpx.AsyncClient] = WeakKeyDictionary()
        self._created: WeakSet[httpx.AsyncClient] = WeakSet()
        self._closed: WeakSet[httpx.AsyncClient] = WeakSet()
        self._lock = threading.RLock()

    def shared(self, loop: Any = None) -> httpx.AsyncClient:
        """Return the client of an event loop (None: of code outside asyncio), created on first use."""
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
        """Return a new instrumented `httpx.AsyncClient(**options)` that is closed at shutdown. See `instrument`."""
        import httpx  # noqa: PLC0415 - slow to import, not always used

        client = self.instrument(httpx.AsyncClient(**options), service, templates, propagate=propagate)
        self._created.add(client)
        return client

    def instrument(
        self, client: C, service: str | None = None, templates: Iterable[str] = (), *, propagate: bool | None = None
    ) -> C:
        """Measure every call of an `httpx` or `httpx2` client, sync or async, and return it. Idempotent.

        `service` is the metric label and the span's `peer.service` (default: the host). `templates`
        (`["/invoices/{id}"]`) name calls by their path; `extensions={"template": "/invoices/{id}"}` names one call.
        `propagate` sets whether the hosts called receive the trace context (default: private hosts and those in
        `propagate_to`); after a redirect to another host the default applies. Raises `TypeError` for other objects,
        `ValueError` for an invalid template.
        """
        module = _client_module(client)
        untyped = cast("Any", client)
        observed = ObservedClient(service, templates, untyped.base_url.path, propagate=propagate)
        with self._lock:
            if untyped not in self._observed:
                wrap = _observe_async if isinstance(client, module.AsyncClient) else _observe_sync
                wrap(untyped, observed, self._calls, module.__name__)
                self._observed[untyped] = observed
        return client

    @property
    def observed(self) -> list[Any]:
        """The clients that are instrumented."""
        return list(self._observed)

    def restore(self) -> None:
        """Uninstrument every client. None is closed."""
        with self._lock:
            for client, observed in list(self._observed.items()):
                _restore(client, observed)
            self._observed.clear()
        self._calls.close_abandoned()

    def reopen(self) -> None:
        """Make the clients that `close` has closed usable again. An app may start several times in its process."""
        while self._closed:
            reopen_client(self._closed.pop())

    async def close(self) -> None:
        """Close every client created here, until `reopen`. Clients passed to `instrument` stay open."""
        clients: set[Any] = {*self._shared.values(), *self._created}
        for client in clients:
            if client.is_closed:  # by the user, for good
                continue
            self._closed.add(client)
            try:
                await client.aclose()
            except Exception as exc:  # noqa: BLE001 - one of another event loop cannot be closed here
                self._internal_errors("http.close", exc)
        self._calls.close_abandoned()


def _client_module(client: Any) -> Any:
    """Return the module `httpx` or `httpx2`, whichever the client is from."""
    for name in _MODULES:
        module = sys.modules.get(name)
        if module is not None and isinstance(client, module.AsyncClient | module.Client):
            return module
    kind = client if isinstance(client, type) else type(client)
    raise TypeError(
        f"cannot instrument {kind.__module__}.{kind.__qualname__}: expected an instance of httpx.Client or AsyncClient "
        "(or httpx2). For other clients use external.call(service, operation)."
    )


def _observe_async(client: Any, observed: ObservedClient, calls: HttpCalls, module: str) -> None:
    original = client.send
    body = body_classes(module)[0]

    async def hook(request: Any) -> None:
        calls.on_request(observed, request)

    @functools.wraps(original)
    async def send(request: Any, *args: Any, **options: Any) -> Any:
        call = calls.begin(observed, client, request)
        if call is None:
            return await original(request, *args, **options)
        try:
            response = await original(request, *args, **options)
        except BaseException as exc:
            call.close(exc)
            raise
        calls.on_response(call, response, body if options.get("stream") else None)
        return response

    _wrap(client, observed, send, hook)


def _observe_sync(client: Any, observed: ObservedClient, calls: HttpCalls, module: str) -> None:
    original = client.send
    body = body_classes(module)[1]

    def hook(request: Any) -> None:
        calls.on_request(observed, request)

    @functools.wraps(original)
    def send(request: Any, *args: Any, **options: Any) -> Any:
        call = calls.begin(observed, client, request)
        if call is None:
            return original(request, *args, **options)
        try:
            response = original(request, *args, **options)
        except BaseException as exc:
            call.close(exc)
            raise
        calls.on_response(call, response, body if options.get("stream") else None)
        return response

    _wrap(client, observed, send, hook)


def _wrap(client: Any, observed: ObservedClient, send: Any, hook: Callable[[Any], Any]) -> None:
    send.observed = observed, client.__dict__.get("send")
    client.send = send
    observed.hook = hook
    observed.ensure_hook(client)


def _restore(client: Any, observed: ObservedClient) -> None:
    observed.active = False  # all that can be done where other code has wrapped our `send`
    hooks = client.event_hooks["request"]
    client.event_hooks["request"] = [hook for hook in hooks if hook is not observed.hook]
    owner, previous = getattr(client.__dict__.get("send"), "observed", (None, None))
    if owner is observed:
        if previous is None:
            del client.send
        else:
            client.send = previous
