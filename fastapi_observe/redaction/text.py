"""`FreeText`: what may be shown of a text that nobody knows anything about."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus

from fastapi_observe.redaction.patterns import (
    CARD,
    ELEMENT,
    HEADER_VALUE,
    KEY_BEFORE_VALUE,
    LIBRARY_ERRORS,
    OF_ELEMENT,
    OTHER_KEYS,
    PLACEHOLDER,
    QUERY_OF_PATH,
    QUOTED,
    REDACTED,
    SCHEMES,
    SQLITE_ERROR_VALUE,
    TRIGGER_CHARACTERS,
    URL_PART,
    USERINFO,
    VALUE,
    WITH_A,
    WITH_COLON,
    WITH_DOT,
    WITH_HYPHEN,
    WITH_J,
    WITH_UNDERSCORE,
    hide_card,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastapi_observe.redaction.names import SecretNames

MAX_TEXT_LENGTH: Final = 8192
"""Characters of a text that are looked at; what stands behind them is shown nowhere."""

MAX_USER_PATTERN_LENGTH: Final = 2048
"""Characters of a line that the user's own patterns are given: their time may grow with the square of the length."""

MAX_QUERY_BYTES: Final = 1024
"""Bytes of a query string that are shown."""

MARGIN: Final = 128
"""Characters behind what is shown that are looked at too: else a secret that is cut off would not be known as one."""

_MIN_CARD_DIGITS: Final = 13
_DIGITS: Final = re.compile(r"[2-6][0-9 -]{12}").search
_MARKS: Final = TRIGGER_CHARACTERS.search
_QUOTES: Final = frozenset({"'", '"', "\\"})
_HEADERS: Final = ("authorization", "cookie")


class TextRedactor:
    """Hides what looks like a secret, and the values behind secret names.

    First what is known of secrets and of what libraries write, then the user's `patterns`, then the user's `function`.
    A function that raises, or returns no text, hides the text and is counted at `redact`.
    """

    __slots__ = ("_allow", "_faults", "_function", "_names", "_patterns")

    def __init__(
        self,
        names: SecretNames,
        capture_query_parameters: Iterable[str],
        patterns: Iterable[str],
        function: Callable[[str], Any] | None,
        faults: Callable[[str, BaseException], None] | None,
    ) -> None:
        self._names = names
        # A name that is secret stays so: whoever allowed it may not have known what else it stands for.
        self._allow = frozenset(name for name in capture_query_parameters if not names.hides_in_query(name))
        self._patterns = tuple(re.compile(pattern) for pattern in patterns)
        self._function = function
        self._faults = faults

    def text(self, text: str) -> str:
        """Return free text without what looks like a secret, and without the values behind secret names.

        At most 8,192 characters.
        """
        text = self._plain(text[:MAX_TEXT_LENGTH])
        if self._patterns or self._function is not None:
            text = self._as_user_wants(text)
        return text[:MAX_TEXT_LENGTH]

    def _plain(self, text: str) -> str:
        if _MARKS(text) is not None:
            text = self._hide_keys(text)
            if ":" in text or "=" in text or '"' in text or "'" in text or "--" in text or "<" in text or "%3" in text:
                for words, pattern, instead in LIBRARY_ERRORS:
                    if any(word in text for word in words):
                        text = pattern.sub(instead, text)
                text = self._hide_named(self._hide_accounts(text))
            if "?" in text:
                text = QUERY_OF_PATH.sub(lambda found: f"?{self.query(found[0][1:])}", text)
            if " " in text or "%20" in text:
                text = _hide_after_scheme(text)
        if len(text) >= _MIN_CARD_DIGITS and _DIGITS(text) is not None:
            text = CARD.sub(hide_card, text)
        return text

    @staticmethod
    def _hide_keys(text: str) -> str:
        """Hide credentials that tell what they are."""
        patterns: tuple[re.Pattern[str], ...] = ()
        if "-" in text and (
            "sk-" in text
            or "xox" in text
            or "pypi-" in text
            or "glpat-" in text
            or "-----BEGIN " in text
            or "xapp-" in text
        ):
            patterns += WITH_HYPHEN
        if "_" in text and (
            "gh" in text
            or "github_" in text
            or "k_live_" in text
            or "k_test_" in text
            or "npm_" in text
            or "hf_" in text
            or "whsec_" in text
            or "shp" in text
            or "dop_v1_" in text
        ):
            patterns += WITH_UNDERSCORE
        if "A" in text and ("AKIA" in text or "ASIA" in text or "AIza" in text):
            patterns += WITH_A
        if "J" in text and "eyJ" in text:
            patterns += WITH_J
        if "." in text and ("SG." in text or "ya29." in text or "hvs." in text or "hooks.slack.com/" in text):
            patterns += WITH_DOT
        if ":AA" in text:
            patterns += WITH_COLON
        for pattern in patterns:
            text = pattern.sub(REDACTED, text)
        return text

    def _hide_accounts(self, text: str) -> str:
        """Hide user and password of addresses, and what else of URLs is not shown."""
        if "://" in text:
            text = URL_PART.sub(self._hide_in_url, text)
        return USERINFO.sub(f"{REDACTED}:{REDACTED}@", text) if "@" in text else text

    def _hide_named(self, text: str) -> str:
        """Hide what follows a secret name and `=` or `:`."""
        names = self._names
        quoted = "':" in text or '":' in text or '"=' in text or "'=" in text
        if not quoted:
            lower = text.lower()
            for stem in names.stems:
                if stem in lower:
                    break
            else:
                return text
        for mark, pattern in OTHER_KEYS:
            if mark in text:
                text = _hide_behind(text, pattern, lambda found: VALUE if names.hides(found["name"]) else None)
        if "</" in text:
            text = _hide_behind(text, ELEMENT, lambda found: OF_ELEMENT if names.hides(found["name"]) else None)
        return _hide_behind(text, KEY_BEFORE_VALUE, self._value_behind)

    def _value_behind(self, found: re.Match[str]) -> re.Pattern[str] | None:
        """Return what the value is like that follows a name and `=` or `:`; None if it is not secret."""
        names, name = self._names, found["name"]
        if not names.hides_in_text(name) and not (found["before"] and names.is_secret_pair(found["before"], name)):
            whole, start, end = found.string, found.start("name"), found.end("name")
            quote = whole[end : end + 1]
            if quote not in _QUOTES or whole[start - 1 : start] != quote or not names.hides(name):
                return None
        return HEADER_VALUE if name.lower().endswith(_HEADERS) else VALUE

    def _hide_in_url(self, match: re.Match[str]) -> str:
        """Hide whatever stands before the last `@` of a URL, and behind its first `?` or `#`."""
        rest = match[1]
        before, at, after = rest.rpartition("@")
        account = f"{REDACTED}:{REDACTED}@" if at and (before or after) else ""
        rest = after if at else rest
        rest, fragment, _ = rest.partition("#")
        rest, mark, query = rest.partition("?")
        host, slash, path = rest.partition("/")
        query = f"{mark}{self.query(query)}" if query else mark
        return f"://{account}{host}{self.hide_secret_segments(slash + path)}{query}{fragment and fragment + REDACTED}"

    def _as_user_wants(self, text: str) -> str:
        for pattern in self._patterns:
            text = "\n".join(
                pattern.sub(_hide_found, line[:MAX_USER_PATTERN_LENGTH])
                for line in (text.split("\n") if len(text) > MAX_USER_PATTERN_LENGTH else (text,))
            )
        if self._function is None:
            return text
        try:
            wanted = self._function(text)
            if not isinstance(wanted, str):
                raise TypeError(f"redact returned {type(wanted).__name__}, not str")  # noqa: TRY301 - told like the rest
        except Exception as exc:  # noqa: BLE001 - the user's function may raise anything; then nothing is sure
            if self._faults is not None:
                self._faults("redact", exc)
            return REDACTED
        return wanted

    def database_error(self, text: str) -> str:
        """Return the text of a database's error without what it quotes: statements, values, names."""
        return QUOTED.sub(_hide_quoted, SQLITE_ERROR_VALUE.sub(rf"\g<1>{REDACTED}", text))

    def hide_secret_segments(self, path: str) -> str:
        """Return a path without the segments that stand after one with a secret name."""
        low = path.lower()
        known = "token" in low or "pass" in low or "secret" in low or "key" in low or "otp" in low or "jwt" in low
        if not (known or self._names.more):
            return path
        segments = path.split("/")
        before = segments[0]
        for at in range(1, len(segments)):
            segment = segments[at]
            if segment and segment != ".":  # servers and apps may take `/token//abc` for `/token/abc`
                if self._names.hides_next_segment(before, segment):
                    segments[at] = REDACTED
                before = segment
        return "/".join(segments)

    def query(self, query: bytes | str) -> str:
        """Return a query string with each value redacted whose key is not in `capture_query_parameters`.

        A name of the list of secret ones is never allowed, and what looks like a secret is hidden under an allowed
        name and in a key too. Keys are compared as they are read (`%70age` is `page`). `;` separates like `&`: some
        parsers read it so.
        """
        query = query[: MAX_QUERY_BYTES + MARGIN]
        text = query if isinstance(query, str) else query.decode("latin-1")
        shown = "&".join([self._part(part) for part in text.replace(";", "&").split("&")])
        return shown[:MAX_QUERY_BYTES]

    def _part(self, part: str) -> str:
        key, equals, value = part.partition("=")
        plain = unquote_plus(key) if "%" in key or "+" in key else key
        allowed = plain in self._allow
        if not equals:  # a value without a name, as some send their token
            return part if not part or (allowed and self._is_shown(part)) else REDACTED
        if not self._is_shown(plain):
            key = REDACTED
        return f"{key}={value}" if not value or (allowed and self._is_shown(value)) else f"{key}={REDACTED}"

    def _is_shown(self, text: str) -> bool:
        """Tell whether a part of a query or path has nothing to hide, decoded or not."""
        plain = unquote_plus(text) if "%" in text or "+" in text else text
        return self.text(plain) == plain and (plain is text or self.text(text) == text)


def _hide_behind(text: str, key: re.Pattern[str], value_of: Callable[[re.Match[str]], re.Pattern[str] | None]) -> str:
    """Hide the values that follow keys; `value_of` tells what they are like."""
    parts: list[str] = []
    done = at = 0
    while (found := key.search(text, at)) is not None:
        at = found.end()
        pattern = value_of(found)
        if pattern is None:
            continue
        end = pattern.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing at least
        if end > at and not PLACEHOLDER.fullmatch(text, at, end):
            parts += [text[done:at], REDACTED]
            done = at = end
    return "".join([*parts, text[done:]]) if parts else text


def _hide_after_scheme(text: str) -> str:
    """Hide what follows the name of a scheme of HTTP authentication."""
    lower = text.lower()
    for word, pattern in SCHEMES:
        if word in lower:
            text = pattern.sub(rf"\1 {REDACTED}", text)
    return text


def _hide_found(match: re.Match[str]) -> str:
    return REDACTED if match[0] else ""


def _hide_quoted(match: re.Match[str]) -> str:
    return f"{match[0][0]}{REDACTED}{match[0][0]}"
