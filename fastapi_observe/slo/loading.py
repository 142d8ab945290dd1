"""Load the app that a command names, with its settings and its plan."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from contextlib import contextmanager
from inspect import iscoroutine, isroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fastapi_observe.settings.sources import SettingsError
from fastapi_observe.slo.live import invalid_objectives_reported_later
from fastapi_observe.slo.plan import SLOPlan, make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.settings.model import ObserveSettings


MAX_MIDDLEWARE_LAYERS: Final = 100
"""Layers of middleware around an app that are looked through."""


class LoadError(Exception):
    """The app cannot be loaded; the message has the cause and the next step."""


def load_plan(target: str) -> tuple[Any, ObserveSettings, SLOPlan]:
    """Import `module:attribute` (dotted attributes and app factories are allowed).

    The current directory comes first on the path. Invalid objectives are problems of the plan. Raises
    `LoadError` if module, attribute or `install` is missing, or the import or the factory fails.
    """
    with invalid_objectives_reported_later():
        app = get_observability_of(load_app(target), target).app
    return (app, *get_plan(app, target))


def get_plan(app: Any, name: str = "the app") -> tuple[ObserveSettings, SLOPlan]:
    """Return the settings and the plan of an installed app. Raises `LoadError` if it is not installed."""
    observability = get_observability_of(app, name)
    settings: ObserveSettings = observability.settings
    return settings, make_plan(observability.app, settings)


def get_observability_of(app: Any, name: str) -> Any:
    """Return the `Observability` of an app, also of one inside middleware: `app = CORSMiddleware(app)`.

    Raises `LoadError` if it is not installed.
    """
    inner = app
    for _ in range(MAX_MIDDLEWARE_LAYERS):
        observability = getattr(getattr(inner, "state", None), "observe", None)
        if observability is not None or not hasattr(inner, "app"):
            break
        inner = inner.app  # where middleware keeps the app that it wraps
    if observability is None and not hasattr(inner, "state"):
        raise LoadError(f"{name} is of type {type(app).__name__}; name the app that install(app) was called on")
    if observability is None:
        raise LoadError(f"{name} is not installed; call install(app) where the app is created")
    return observability


def load_app(target: str) -> Any:
    """Import an app as `load_plan` does. An app factory, with or without `()`, is called."""
    module, separator, attribute = target.removesuffix("()").partition(":")
    is_file = module.endswith(".py") or "/" in module
    if not separator or not module or not attribute or is_file:
        example = f"{module.removesuffix('.py').replace('/', '.')}:{attribute or 'app'}" if is_file else "shop.main:app"
        raise LoadError(f"invalid app {target!r}; use MODULE:APP, such as {example}")
    directory = str(Path.cwd())
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    with _exit_raises():
        return _find(module, attribute, target)


def _find(module: str, attribute: str, target: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise LoadError(f"there is no module {module!r} in {Path.cwd()} or on PYTHONPATH") from None
        raise LoadError(f"importing {module} failed{_place(error)}: {error}") from error
    except SettingsError as error:  # its message has the next step
        raise LoadError(str(error)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an app may exit, or stop a test run
        raise LoadError(f"importing {module} failed{_place(error)}: {type(error).__name__}: {error}") from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            apps = [
                variable
                for variable, value in vars(sys.modules[module]).items()
                if hasattr(value, "routes") and not isinstance(value, type)
            ]
            hint = f"; did you mean {module}:{apps[0]}?" if apps else ""
            raise LoadError(f"{module} has no attribute {attribute!r}{hint}") from None
    return _call_factory(found, target) if isroutine(found) else found


@contextmanager
def _exit_raises() -> Iterator[None]:
    """Let `os._exit` of an app raise `SystemExit`, which is reported. It would end the command without a word."""
    exit_process, pid = os._exit, os.getpid()

    def raise_exit(status: int) -> NoReturn:
        if os.getpid() != pid:  # a child of the app
            exit_process(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = raise_exit
    try:
        yield
    finally:
        os._exit = exit_process


def _call_factory(factory: Any, target: str) -> Any:
    try:
        made = factory()
    except SettingsError as error:
        raise LoadError(str(error)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise LoadError(
            f"{target} is a function, and calling it as an app factory failed{_place(error)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if iscoroutine(made):
        made.close()
        raise LoadError(f"{target} is an async function; an app factory is a def that returns the app")
    return made


def _place(error: BaseException) -> str:
    """Return the innermost line of code below the current directory that an error came through, as ` at FILE:LINE`."""
    here = Path.cwd()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(here) and "site-packages" not in path.parts and path != Path(__file__):
            return f" at {path.relative_to(here)}:{frame.lineno}"
    return ""
