"""The fields of a request (`observe.set`), which are on everything that is reported for it from then on."""

from __future__ import annotations

import logging
import math
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.opentelemetry import current_context
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.records.request import CONTEXT_KEY, ExcludedRef, RecordRef, RequestFields

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from fastapi_observe.redaction.redactor import Redactor

MAX_FIELDS: Final = 32
"""Fields of one request; further names are left out."""

MAX_REQUEST_FIELD_NAME_LENGTH: Final = 64
MAX_FIELD_VALUE_LENGTH: Final = 256
MAX_FIELD_ITEMS: Final = 16
"""Characters of a name and of a value, and items of a list."""

_REDACTED_LENGTH: Final = 2048
"""Characters of a value that are redacted, before it is cut: a cut secret would not be recognized."""

CONVENTIONS: Final = {
    "enduser_id": "enduser.id",
    "enduser_pseudo_id": "enduser.pseudo.id",
    "session_id": "session.id",
    "user_email": "user.email",
    "user_full_name": "user.full_name",
    "user_hash": "user.hash",
    "user_id": "user.id",
    "user_name": "user.name",
    "user_roles": "user.roles",
}
"""Attributes of OpenTelemetry's semantic conventions for fields that cannot have a point in their name."""

MAX_NAMED: Final = 5
"""Names of fields in one warning."""

_MAX_INT64: Final = 2**63


def current_reference(context: Context | None = None) -> RecordRef | None:
    """Return the reference to the running request of a context (None: the current one), or None outside any."""
    reference = (current_context() if context is None else context).get(CONTEXT_KEY)
    if isinstance(reference, RecordRef) and (reference.record is not None or isinstance(reference, ExcludedRef)):
        return reference
    return None


def current_fields(context: Context | None = None) -> RequestFields | None:
    """Return the fields of the running request of a context (None: the current one), or None if there are none."""
    reference = current_reference(context)
    return None if reference is None else reference.fields


def add_fields(reference: RecordRef, new: dict[str, Any], redactor: Redactor) -> list[str]:
    """Set fields of a request. Returns the names that are left out because there are too many.

    Values are copied, redacted and cut now, so that all signals report the same. None removes a field. The dicts are
    replaced, not changed: other threads may be reading them.
    """
    before = reference.fields or RequestFields({}, {})
    fields, attributes = dict(before.fields), dict(before.attributes)
    left_out: list[str] = []
    for given, value in new.items():
        name = _well_formed(given[:MAX_REQUEST_FIELD_NAME_LENGTH])
        attribute = CONVENTIONS.get(name, name)
        if value is None:
            fields.pop(name, None)
            attributes.pop(attribute, None)
        elif name in fields or len(fields) < MAX_FIELDS:
            fields[name] = attributes[attribute] = _redact(name, attribute, value, redactor)
        else:
            left_out.append(name)
    reference.fields = RequestFields(fields, attributes)
    return left_out


class FieldSetter:
    """Sets fields of the current request for one install. `on_set` is called after that."""

    def __init__(self, redactor: Redactor, on_set: Callable[[RecordRef], object]) -> None:
        self._redactor = redactor
        self._on_set = on_set
        self._throttle = LogThrottle()

    def __call__(self, fields: dict[str, Any]) -> None:
        """Set the fields. A warning says that there is no request, or which fields are left out."""
        reference = current_reference()
        if reference is None:
            if self._throttle.allow("outside"):
                logging.getLogger("fastapi_observe").warning(
                    "observe.set(%s) has no effect: it was called outside a request. Call it in a request; start "
                    "threads with asyncio.to_thread or tracing.run_in_executor, which keep the context.",
                    ", ".join(sorted(fields)[:MAX_NAMED]),
                )
            return
        left_out = add_fields(reference, fields, self._redactor)
        self._on_set(reference)
        if left_out and self._throttle.allow("too many"):
            logging.getLogger("fastapi_observe").warning(
                "observe.set left out %d fields (%s): a request has at most %d. Set fewer, or log them on a line.",
                len(left_out),
                ", ".join(left_out[:MAX_NAMED]),
                MAX_FIELDS,
            )


def _redact(name: str, attribute: str, value: Any, redactor: Redactor) -> Any:
    """Return a bounded value of OpenTelemetry's types, redacted by both of its names."""
    if not isinstance(value, str | int | float):  # its string would not distinguish names and values
        value = redactor.value(value)
    plain = _to_plain(value)
    redacted = redactor.fields({name: plain})[name]
    if attribute != name:
        redacted = redactor.value_for_name(attribute, redacted)
    return _cut(redacted)


def _to_plain(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        # A list of one type: OpenTelemetry allows no other.
        return [_to_text(item) for item in islice(value, MAX_FIELD_ITEMS)]
    if isinstance(value, bool):
        return bool(value)
    if type(value) is int and -_MAX_INT64 <= value < _MAX_INT64:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    return _to_text(value)


def _to_text(value: Any) -> str:
    try:
        return _well_formed((str.__str__(value) if isinstance(value, str) else str(value))[:_REDACTED_LENGTH])
    except Exception:  # noqa: BLE001 - __str__ of any class
        return "<unprintable>"


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_FIELD_VALUE_LENGTH else value[: MAX_FIELD_VALUE_LENGTH - 1] + "…"
    return [_cut(item) for item in value] if isinstance(value, list) else value


def _well_formed(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
