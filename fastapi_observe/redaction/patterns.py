"""Patterns of secrets in strings, and of values that libraries put into their error messages.

Each pattern is used only if a word of it is in the string; that check is twenty times as fast as the pattern. The time
of each pattern is linear in the length of the string: its repeats are possessive (`*+`) or bounded.
"""

from __future__ import annotations

import re
from json import JSONDecoder
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REDACTED: Final = "REDACTED"
"""The replacement of a secret, as in OpenTelemetry's semantic conventions."""

MAX_SCANNED_LENGTH: Final = 8192
"""Characters of a string that are scanned. The rest is cut off and reported nowhere."""

MAX_CARD_DIGITS: Final = 19
MIN_CARD_DIGITS: Final = 13


def is_card_number(digits: str) -> bool:
    """Return whether digits can be a payment card's: 13 to 19 digits, the first from 2 to 6, a valid Luhn checksum.

    Numbers of this length that start with 1 are usually timestamps.
    """
    if not (MIN_CARD_DIGITS <= len(digits) <= MAX_CARD_DIGITS and "2" <= digits[0] <= "6"):
        return False
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(digit), 10)) for digit in even)) % 10 == 0


def hide_card(match: re.Match[str]) -> str:
    """Return `REDACTED` for a card number, else the match unchanged."""
    return REDACTED if is_card_number(match[0].replace(" ", "").replace("-", "")) else match[0]


CARD: Final = re.compile(
    r"[2-6](?<![\w.][2-6])(?:[0-9]{12,18}+|[0-9]{3}(?:[ -][0-9]{4}){3}|[0-9]{3}[ -][0-9]{6}[ -][0-9]{4,5}+)(?!\w)"
)
"""Digits without separators, or in the groups that are printed on cards."""

WITH_HYPHEN: Final = (
    re.compile(
        r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY.*?(?:-----END[A-Z0-9 ]{0,64}-----|(?=\n {1,8}File \")|\Z)",
        re.DOTALL,
    ),
    re.compile(r"glpat-[\w-]{16,}+"),
    re.compile(r"pypi-[\w-]{16,}+"),
    re.compile(r"sk-(?<![0-9A-Za-z]sk-)[\w-]{16,}+"),
    re.compile(r"xox[abeprs]-[\w-]{10,}+"),
    re.compile(r"xapp-[\w-]{10,}+"),
)
WITH_UNDERSCORE: Final = (
    re.compile(r"gh[opurs]_[0-9A-Za-z]{16,}+"),
    re.compile(r"github_pat_\w{16,}+"),
    re.compile(r"[rs]k_(?:live|test)_\w{10,}+"),
    re.compile(r"npm_[0-9A-Za-z]{20,}+"),
    re.compile(r"hf_(?<![0-9A-Za-z]hf_)[0-9A-Za-z]{20,}+"),
    re.compile(r"whsec_[\w+/=]{16,}+"),
    re.compile(r"shp(?:at|ca|pa|ss)_[0-9A-Za-z]{16,}+"),
    re.compile(r"dop_v1_\w{16,}+"),
)
WITH_DOT: Final = (
    re.compile(r"SG\.[\w-]{10,64}+\.[\w-]{10,}+"),
    re.compile(r"ya29\.[\w.-]{10,}+"),
    re.compile(r"hvs\.[\w-]{16,}+"),
    re.compile(r"(?<=hooks\.slack\.com/)[^\s'\"<>]++"),
)
WITH_COLON: Final = (re.compile(r"(?<![0-9])[0-9]{6,12}+:AA[\w-]{20,}+"),)
WITH_A: Final = (re.compile(r"A(?:KI|SI)A[0-9A-Z]{16,}+"), re.compile(r"AIza[\w-]{35,}+"))
WITH_J: Final = (re.compile(r"eyJ[\w-]{10,}+(?>(?:\.[\w-]++){0,4})"),)
"""Credentials with a known prefix, by a character that each contains. `J` is in a JWT and in other JSON in base64,
the colon in a Telegram bot's token.
"""

_CREDENTIAL: Final = r"(?=[A-Z.~+/=_-]{0,64}+[0-9]|[\w.~+/=-]{24})[\w.~+/=-]{8,}+"
_MIXED: Final = r"(?=[A-Z_~+-]{0,64}+[0-9])(?=[0-9_~+-]{0,64}+[A-Z])[\w~+-]{6,}+={0,2}+"
"""A word of letters and digits, as ids of sessions are."""
_SESSION_ID: Final = rf"(?:(?=[A-Z.~+/_-]{{0,64}}+[0-9]|[\w.~+/-]{{24}})[\w.~+/-]{{8,}}+={{0,2}}+|{_MIXED})"
AUTHENTICATION_SCHEMES: Final = (
    ("bearer", re.compile(r"(b(?<![A-Z0-9_]b)earer(?:%20|[\s:\"']){1,5})(?!REDACTED)[\w.~+/=-]{8,}+", re.IGNORECASE)),
    *(
        (word, re.compile(rf"({word}(?<![A-Z0-9_]{word})\s{{1,4}}){_CREDENTIAL}", re.IGNORECASE))
        for word in ("basic", "token", "digest")
    ),
    (
        "session",
        re.compile(
            r"(session(?<![A-Z0-9_]session)(?:[\s_-]{1,4}(?:with\s)?id:?)?\s{1,4}(?:->\s)?[#'\"\[(<]{0,2})"
            rf"(?!REDACTED){_SESSION_ID}",
            re.IGNORECASE,
        ),
    ),
    ("sid", re.compile(rf"(sid(?<![A-Z0-9_]sid)\s{{1,4}}[#'\"\[(<]{{0,2}})(?!REDACTED){_SESSION_ID}", re.IGNORECASE)),
)
"""Credentials after `Bearer`; after `basic`, `token` and `digest`, which are ordinary words too, only if they contain a
digit or are long; ids after `session` and `sid`.
"""

# Values have any form, so everything up to the next exception of a chain is redacted.
_REST_OF_EXCEPTION: Final = r".*?(?=\n\n(?:During handling|The above exception)|\Z)"

SQLITE_ERROR_VALUE: Final = re.compile(
    r"(no such (?:column|table|index|savepoint|function|collation sequence|module): |unrecognized token: "
    r"|has no column named |unable to open database: )[^\n]*+"
)
"""Names that SQLite repeats without quotes."""

LIBRARY_ERRORS: Final = (
    (("no such ", "unrecognized token: ", "has no column", "unable to open"), SQLITE_ERROR_VALUE, rf"\g<1>{REDACTED}"),
    (
        ('near "',),
        re.compile(r"(?:(?<=at or )near \"[^\"\n]*+|near \"[^\"\n]{0,256}+(?=\": syntax))"),
        f'near "{REDACTED}',
    ),
    (
        ("[SQL: ",),
        re.compile(r"\[SQL: (?:.*?\](?=\n\[parameters: |\n\(Background|\n?\Z|\n\n)|.*)", re.DOTALL),
        f"[SQL: {REDACTED}]",
    ),
    (("[parameters: ",), re.compile(r"\[parameters: [^\n]*+"), f"[parameters: {REDACTED}]"),
    (
        ("\nDETAIL: ", "\nCONTEXT: ", "\nQUERY: ", "\nLINE ", "invalid input ", "malformed ", "value out of range:"),
        re.compile(
            r"(\n(?:(?:DETAIL|CONTEXT|QUERY): |LINE \d{1,9}:)|invalid input (?:syntax|value) for [^\n:]{1,256}:"
            r"|invalid input for query argument [^\n:]{1,128}:|malformed \w{1,64} literal:|field value out of range:) "
            + _REST_OF_EXCEPTION,
            re.DOTALL,
        ),
        rf"\1 {REDACTED}",
    ),
    (('value "',), re.compile(r"value \"[^\"]{0,1024}+\"(?= is out of range)"), f"value {REDACTED}"),
    (
        ("input_value=",),
        re.compile(r"input_value=(?:[^\n]*(?=, input_type=)|[^\n]*+)"),
        f"input_value={REDACTED}",
    ),
    (
        ("loc': ", 'loc": ', 'loc":', "loc\\': ", 'loc\\":'),
        re.compile(
            r"(['\"](?:input|ctx)\\?['\"]): ?.*?"
            r"(?=\n {0,8}+\{\\?['\"](?:type|loc)|\n\n {0,8}+File \"|\n\n(?:During handling|The above exception)|\Z)",
            re.DOTALL,
        ),
        rf"\1: {REDACTED}",
    ),
    (("Duplicate entry ",), re.compile(r"Duplicate entry [^\n]*?(?= for key |\n|\Z)"), f"Duplicate entry {REDACTED}"),
    (
        ("Key (",),
        re.compile(
            r"(Key \([^\n()]{1,256}+\)=)\([^\n]*?(?: already exists| is (?:not present|still referenced)|\n|\Z)"
        ),
        rf"\1{REDACTED} ",
    ),
)
"""SQLAlchemy's statements and parameters, values and statements in PostgreSQL's messages, pydantic's input.

Each entry has words of which one is in the string, the pattern, and its replacement.
"""

TRIGGER_CHARACTERS: Final = re.compile(r"[JA_\-:=?@ \"<%.,]")
"""A string without any of these characters contains nothing that the patterns match, except a card number."""

URL_PART: Final = re.compile(r"://([^\s'\"<>]++)")
"""The part of a URL after its scheme, up to white space or a quote."""

QUERY_OF_PATH: Final = re.compile(r"\?(?<=[\w/]\?)(?=[^\s'\"=&]{1,64}=)[^\s'\"]*+")
"""A query after a path: `?` and at least one `name=value`."""

USERINFO: Final = re.compile(r"(?<![\w/.:+-])[\w.+-]{1,64}+:[^\s@:/'\"]{1,128}+@(?=[\w\[(.-])")
"""User and password of an address without a scheme: `app:hunter2@db:5432`."""

KEY_BEFORE_VALUE: Final = re.compile(
    r"(?<![\w.-])(?:(?P<before>[A-Za-z]{1,16}) )?(?P<name>[\w.-]{1,128}+)[\]'\"\\]{0,4}+(?:\[[0-9]{0,4}+\])?\s{0,8}+"
    r"(?:=>|:=|={1,3}+|:{1,2}+|%3[Dd])\s{0,16}+"
)
"""A word before `=` or `:`, optionally with a word before it and an index after it (`password[]=`), up to the value."""

_NAME_KEY: Final = (
    r"(?:name|key|header|field|parameter|param|attribute|variable|option|property|setting|label)\\?['\"]?"
)
_VALUE_KEY: Final = r"(?:\w{1,32}_)?(?:parameter|header)?(?:values?|val)\\?['\"]?"

NAMES_BEFORE_VALUES: Final = (
    ("--", re.compile(r"(?<![\w-])--(?P<name>[\w.-]{1,64}+)(?:['\"]?,\s?|\s{1,4})(?=['\"]?[^\s'\"-])")),
    (",", re.compile(r"[(\[]b?\\?['\"](?P<name>[\w.-]{1,128}+)\\?['\"],\s{0,4}+")),
    (
        "val",
        re.compile(
            rf"{_NAME_KEY}\s?[:=]\s?\\?['\"]?(?P<name>[\w.-]{{1,128}}+)\\?['\"]?,?\s{{0,12}}+"
            rf"\\?['\"]?{_VALUE_KEY}\s?[:=]\s?",
            re.IGNORECASE,
        ),
    ),
)
"""A name before its value as an option, in a tuple, and under keys such as `name` and `value`.

Each entry has a substring that the string contains, and the pattern.
"""

XML_ELEMENT: Final = re.compile(r"<(?:\w{1,32}:)?(?P<name>[\w.-]{1,128}+)(?:\s[^<>]{0,256}+)?>(?=[^<\s])")
XML_CONTENT: Final = re.compile(r"(?>(?:[^<\n]|\n(?! {1,8}File \"))*)")
"""The start tag of an XML element, and its content."""


def _quoted_value(group: str) -> str:
    r"""Return the pattern of a quoted string, which may lack its second quote.

    The quotes of a string inside another one have backslashes (`\"a\"`). A quote with more of them is inside it.
    """
    return rf"""
    (?P<{group}>\\++)["'](?>(?:[^"'\\\n]|(?P={group})\\++["']|\\++(?!["']))*)(?:(?P={group})["'])?
    | [bfru]{{0,2}}"(?>(?:[^"\\\n]|\\.)*)"?
    | [bfru]{{0,2}}'(?>(?:[^'\\\n]|\\.)*)'?
"""


_QUOTED_VALUE: Final = _quoted_value("a")
VALUE: Final = re.compile(
    rf"""(?-i:REDACTED)|(?:(?:bearer|basic|token)\s++)?(?:{_QUOTED_VALUE}
    | [\w.+-]++(?=,["'\\]|\s?[}}\])]{{1,4}}+(?:[\s,;]|\Z)) | [\[({{][^\n]*+ | \S++)?""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
"""A value: a quoted string, a JSON number, a list up to the end of its line, or everything up to white space."""

TUPLE_VALUES: Final = re.compile(
    rf"""(?-i:REDACTED)|(?:{_QUOTED_VALUE}|[^\s,()\[\]{{}}'"]{{1,256}}+)
    (?:,\s{{0,4}}+(?:{_quoted_value("b")}|[^\s,()\[\]{{}}'"]{{1,256}}+)(?=\s?\)))?|""",
    re.VERBOSE | re.DOTALL,
)
"""The second member of a tuple whose first is a name, and the third of a tuple of three."""

_KEY_QUOTE: Final = re.compile(r"(\\*+['\"])(?!\])")
"""The quote after a name that is a key of JSON or of a `repr`, with its backslashes."""

_WHOLE_VALUE: Final = re.compile(
    r"""(?:(?P<quote>\\*+['"]).*(?P=quote)|-?[0-9][0-9.eE+-]*+|true|false|null|True|False|None)(?P<comma>,)?""",
    re.DOTALL,
)
"""A string with both quotes, a number or a constant, with the comma after it that `VALUE` may include."""

_MEMBER_END: Final = re.compile(r"\s{0,4}+(?:[,}\])]|\Z)")
_parse_json: Final = JSONDecoder().raw_decode
MAX_CONTAINERS: Final = 16
"""Lists and objects in a string that are replaced up to their end. Later ones are up to the end of the line."""

VALUE_BEFORE_NAME: Final = re.compile(
    rf"""(?P<head>(?:values?|val)\\?['"]?\s?[:=]\s?)(?P<value>\\?"(?>(?:[^"\\\n]|\\.)*)"|\\?'(?>(?:[^'\\\n]|\\.)*)'|[^\s,}}'"]{{1,256}}+)
    (?P<tail>,?\s{{0,4}}\\?['"]?\w{{0,16}}{_NAME_KEY}\s?[:=]\s?\\?['"](?P<name>[\w.-]{{1,128}}+)\\?['"])""",
    re.IGNORECASE | re.VERBOSE,
)
"""A value before its name, under the same keys."""

OPAQUE_ID: Final = re.compile(r"(?:['\"]?(?=(?:[A-Za-z_~+-]{0,64}+[0-9]){3})[\w~+-]{16,}+={0,2}+['\"]?)?")
"""An id such as a UUID or a random token: 16 or more characters, at least three of them digits. May be empty."""

SESSION_ID: Final = re.compile(rf"(?:['\"\[(<]{{0,2}}{_MIXED}['\"\])>]{{0,2}})?", re.IGNORECASE)
"""The id of a session, after `session:` in a sentence. May be empty."""

COUNT: Final = re.compile(r"['\"]?-?[0-9]{1,12}+(?:\.[0-9]{1,12}+)?(?![\w.-])")
"""A number, with or without quotes."""

ENCODED_WORD: Final = re.compile(r"[^\s'\"<>]++")
UNICODE_ESCAPE: Final = re.compile(r"\\u00([0-9A-Fa-f]{2})")
"""A word that may contain percent-encoded characters, and the escapes of JSON for the same characters."""

ENCODED_PERCENT: Final = re.compile(r"(?<=%)(?>(?:25(?=[0-9A-Fa-f]{2}))+)")
"""What encoding again has put between a `%` and its digits: `%2522` and `%252522` are `%22`."""

LINE_VALUE: Final = re.compile(rf"(?-i:REDACTED) | {_QUOTED_VALUE} | [^\n]*+", re.IGNORECASE | re.VERBOSE | re.DOTALL)
"""A value of several words, such as that of `Authorization` and `Cookie`: quoted, or up to the end of its line."""

QUOTED: Final = re.compile(r"""(?<![A-Za-z])"[^"]*+(?:"|\Z)|(?<![A-Za-z])'[^']*+(?:'|\Z)""")
"""A quoted part. An apostrophe inside a word does not start one."""

SQL_PLACEHOLDER: Final = re.compile(
    r"(?:\?|\$[0-9]{1,5}|%s|%\([A-Za-z_]\w{0,62}\)s|[:@][A-Za-z_]\w{0,62}|NULL|None|null)[,;)]{0,8}+"
)
"""A placeholder of SQL, which is not a value: `WHERE password = ?`."""

_PLAIN_WORD: Final = r"(?!sk|rk|npm|pypi|glpat|gh|github|xox|xapp|hf|whsec|shp|dop)[a-z]{1,24}+"
_HEX: Final = "[0-9a-f]{4}"
_UUID: Final = rf"{_HEX}{_HEX}-{_HEX}-{_HEX}-{_HEX}-{_HEX}{_HEX}{_HEX}"
_ENDS: Final = r"(?=/|\Z)"
PLAIN_PATH: Final = re.compile(
    rf"(?>(?:/(?:[0-9a-z._~-]{{0,12}}+{_ENDS}|{_UUID}{_ENDS}"
    rf"|[0-9a-f]{{20,64}}+{_ENDS}|{_PLAIN_WORD}(?>(?:[-_]{_PLAIN_WORD})*){_ENDS}))*)"
)
"""A path of short segments, UUIDs, long hexadecimal numbers and words, none of which can be a secret."""

PLAIN_ID: Final = re.compile("[0-9]{1,12}+|[0-9a-f]{8}+-[0-9a-f]{4}+-[0-9a-f]{4}+-[0-9a-f]{4}+-[0-9a-f]{12}+")
"""A number or a UUID, as in `PLAIN_PATH`. It cannot contain a secret word."""


def hide_credentials(text: str) -> str:
    """Return a string without credentials that have a known prefix."""
    # A chain of `in` is several times as fast as a loop over a table, and most strings contain none of these words.
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


def hide_library_values(text: str) -> str:
    """Return a string without the values that libraries repeat in their error messages."""
    for words, pattern, replacement in LIBRARY_ERRORS:
        if any(word in text for word in words):
            text = pattern.sub(replacement, text)
    return text


def hide_after_scheme(text: str) -> str:
    """Return a string without the credentials after the name of an HTTP authentication scheme."""
    lower = text.lower()
    for word, pattern in AUTHENTICATION_SCHEMES:
        if word in lower:
            text = pattern.sub(rf"\1{REDACTED}", text)
    return text


def redact_database_error(text: str) -> str:
    """Return the message of a database error without its quoted parts: statements, values, names."""
    text = SQLITE_ERROR_VALUE.sub(rf"\g<1>{REDACTED}", text)
    return QUOTED.sub(lambda match: f"{match[0][0]}{REDACTED}{match[0][0]}", text)


def hide_values(text: str, key: re.Pattern[str], value_end: Callable[[re.Match[str]], int]) -> str:
    """Hide the value after each match of `key`; `value_end` returns its end, or the end of the match to skip it."""
    parts: list[str] = []
    done = at = containers = 0
    while (match := key.search(text, at)) is not None:
        at = match.end()
        end = value_end(match)
        if end > at and not SQL_PLACEHOLDER.fullmatch(text, at, end):
            hidden = REDACTED
            if (quote := _KEY_QUOTE.match(text, match.end("name"))) is not None:
                if text[at] in "[{" and containers < MAX_CONTAINERS and (found := _json_end(text, at)) is not None:
                    end, containers = found, containers + 1
                    hidden = f"{quote[1]}{REDACTED}{quote[1]}"
                else:
                    hidden = _keep_quotes(text[at:end], quote[1])
            parts += [text[done:at], hidden]
            done = at = end
    return "".join([*parts, text[done:]]) if parts else text


def hide_values_before_names(text: str, is_secret: Callable[[str], bool]) -> str:
    """Hide the value in `{"value": ..., "name": "password"}`."""

    def hide(match: re.Match[str]) -> str:
        return f"{match['head']}{_keep_quotes(match['value'])}{match['tail']}" if is_secret(match["name"]) else match[0]

    return VALUE_BEFORE_NAME.sub(hide, text)


def _keep_quotes(value: str, key_quote: str = "") -> str:
    """Return the replacement of a value: in its quotes, or those of its key if it is a number or a constant of JSON.

    A value whose second quote is missing or another one is replaced as a whole.
    """
    match = _WHOLE_VALUE.fullmatch(value)
    if match is None:
        return REDACTED
    quote = match["quote"] or key_quote
    return f"{quote}{REDACTED}{quote}{match['comma'] or ''}"


def _json_end(text: str, at: int) -> int | None:
    """Return the end of a list or an object of JSON, or None if it is none, or the text has an escape.

    A backslash may belong to a string around the JSON, where its quotes have another meaning.
    """
    if "\\" in text:
        return None
    try:
        _, end = _parse_json(text, at)
    except (ValueError, RecursionError):
        return None
    return end if _MEMBER_END.match(text, end) else None
