"""What secrets look like in free text, and what libraries are known to put into theirs.

Where these patterns are used a word of theirs is looked for first: that is twenty times as fast. The time of each is
linear in the text: it keeps what it has read (`*+`), or has read a bounded number of characters.
"""

from __future__ import annotations

import re
from typing import Final

REDACTED: Final = "REDACTED"
"""What stands for a secret, as the semantic conventions have it."""

MAX_CARD_DIGITS: Final = 19
MIN_CARD_DIGITS: Final = 13


def is_card_number(digits: str) -> bool:
    """Tell whether digits are what a payment card has: 13 to 19 of them, the first from 2 to 6, Luhn's sum right.

    Numbers of those lengths that begin with 1 are times and made-up ids.
    """
    if not (MIN_CARD_DIGITS <= len(digits) <= MAX_CARD_DIGITS and "2" <= digits[0] <= "6"):
        return False
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(digit), 10)) for digit in even)) % 10 == 0


def hide_card(match: re.Match[str]) -> str:
    """Hide a number if it is a card's."""
    return REDACTED if is_card_number(match[0].replace(" ", "").replace("-", "")) else match[0]


CARD: Final = re.compile(
    r"[2-6](?<![\w.][2-6])(?:[0-9]{12,18}+|[0-9]{3}(?:[ -][0-9]{4}){3}|[0-9]{3}[ -][0-9]{6}[ -][0-9]{4,5}+)(?!\w)"
)
"""Of digits alone, or in the groups that are printed on cards."""

WITH_HYPHEN: Final = (
    re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY.*?(?:-----END[A-Z0-9 ]{0,64}-----|\Z)", re.DOTALL),
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
"""Credentials that tell what they are, by a character that each has; `J` is of a JWT, or of other JSON in
base64, the colon of a Telegram bot's token."""

_CREDENTIAL: Final = r"(?=[A-Z.~+/=_-]{0,64}+[0-9]|[\w.~+/=-]{24})[\w.~+/=-]{8,}+"
SCHEMES: Final = (
    ("bearer", re.compile(r"(b(?<![A-Z0-9_]b)earer)(?:%20|[\s:\"']){1,5}(?!REDACTED)[\w.~+/=-]{8,}+", re.IGNORECASE)),
    *(
        (word, re.compile(rf"({word})(?<![A-Z0-9_]{word})\s{{1,4}}{_CREDENTIAL}", re.IGNORECASE))
        for word in ("basic", "token", "digest")
    ),
)
"""What follows `Bearer`; and what follows words of sentences too, if it has a digit or is long."""

_TO_THE_END: Final = r".*?(?=\n\n(?:During handling|The above exception)|\Z)"  # of this exception: values have any form

SQLITE_ERROR_VALUE: Final = re.compile(
    r"(no such (?:column|table|index|savepoint|function|collation sequence|module): |unrecognized token: "
    r"|has no column named |unable to open database: )[^\n]*+"
)
"""What SQLite repeats without quotes."""

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
            + _TO_THE_END,
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
"""SQLAlchemy's statements and parameters, what PostgreSQL repeats of values and statements, pydantic's input: words of
which one is in the text, the pattern, and what stands instead."""

TRIGGER_CHARACTERS: Final = re.compile(r"[JA_\-:=?@ \"<%.,]")
"""A text without any of these characters has none of all this, but perhaps a card's number."""

URL_PART: Final = re.compile(r"://([^\s'\"<>]++)")
"""What follows the scheme of a URL, up to white space or a quote."""

QUERY_OF_PATH: Final = re.compile(r"\?(?<=[\w/]\?)(?=[^\s'\"=&]{1,64}=)[^\s'\"]*+")
"""A query behind a path, a `?` that one or more `name=value` follow."""

USERINFO: Final = re.compile(r"(?<![\w/.:+-])[\w.+-]{1,64}+:[^\s@:/'\"]{1,128}+@(?=[\w\[(.-])")
"""User and password of an address without a scheme: `app:hunter2@db:5432`."""

KEY_BEFORE_VALUE: Final = re.compile(
    r"(?<![\w.-])(?:(?P<before>[A-Za-z]{1,16}) )?(?P<name>[\w.-]{1,128}+)[\]'\"\\]{0,4}+\s{0,8}+"
    r"(?:=>|:=|={1,3}+|:|%3[Dd])\s{0,16}+"
)
"""A word, perhaps with one before it, that `=` or `:` follows, and the blanks up to the value."""

OTHER_KEYS: Final = (
    ("--", re.compile(r"(?<![\w-])--(?P<name>[\w-]{1,64}+)(?:['\"]?,\s?|\s{1,4})(?=['\"]?[^\s'\"-])")),
    (",", re.compile(r"[(\[]b?\\?['\"](?P<name>[\w.-]{1,128}+)\\?['\"],\s{0,4}+")),
    (
        "value",
        re.compile(
            r"\b(?:name|key|header|field)\\?['\"]?\s?[:=]\s?\\?['\"](?P<name>[\w.-]{1,128}+)\\?['\"],?\s{0,4}"
            r"\\?['\"]?value\\?['\"]?\s?[:=]\s?"
        ),
    ),
)
"""A name before its value as an option, in a pair, under `name` and `value`: what is in the text, and the pattern."""

ELEMENT: Final = re.compile(r"<(?:\w{1,32}:)?(?P<name>[\w.-]{1,128}+)(?:\s[^<>]{0,256}+)?>(?=[^<\s])")
OF_ELEMENT: Final = re.compile(r"[^<]*+")
"""The beginning of an element of XML, and what is in it."""

_QUOTED_VALUE: Final = r"""
    \\++["'](?>(?:[^"'\\\n]|\\(?!["']))*)(?:\\++["'])?
    | [bfru]{0,2}"(?>(?:[^"\\\n]|\\.)*)"?
    | [bfru]{0,2}'(?>(?:[^'\\\n]|\\.)*)'?
"""
VALUE: Final = re.compile(
    rf"""(?-i:REDACTED)|(?:(?:bearer|basic|token)\s++)?(?:{_QUOTED_VALUE}
    | [\w.+-]++(?=,["'\\]|\s?[}}\])]{{1,4}}+(?:[\s,;]|\Z)) | [\[({{][^\n]*+ | \S++)?""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
"""The value that follows: a quoted one, a number of JSON, a list to the end of its line, or all up to white space."""

HEADER_VALUE: Final = re.compile(rf"(?-i:REDACTED) | {_QUOTED_VALUE} | [^\n]*+", re.IGNORECASE | re.VERBOSE | re.DOTALL)
"""The value of a header, to the end of its line: of `Authorization` and `Cookie`."""

QUOTED: Final = re.compile(r"""(?<![A-Za-z])"[^"]*+(?:"|\Z)|(?<![A-Za-z])'[^']*+(?:'|\Z)""")
"""Quoted parts, apostrophes of words aside."""

PLACEHOLDER: Final = re.compile(
    r"(?:\?|\$[0-9]{1,5}|%s|%\([A-Za-z_]\w{0,62}\)s|[:@][A-Za-z_]\w{0,62}|NULL|None|null)[,;)]{0,8}+"
)
"""What stands for a value in SQL, and what is none: `WHERE password = ?`."""

_PLAIN_WORD: Final = r"(?!sk|rk|npm|pypi|glpat|gh|github|xox|xapp|hf|whsec|shp|dop)[a-z]{1,24}+"
_HEX: Final = "[0-9a-f]{4}"
_UUID: Final = rf"{_HEX}{_HEX}-{_HEX}-{_HEX}-{_HEX}-{_HEX}{_HEX}{_HEX}"
_ENDS: Final = r"(?=/|\Z)"
PLAIN_PATH: Final = re.compile(
    rf"(?>(?:/(?:[0-9a-z._~-]{{0,12}}+{_ENDS}|{_UUID}{_ENDS}"
    rf"|[0-9a-f]{{20,64}}+{_ENDS}|{_PLAIN_WORD}(?>(?:[-_]{_PLAIN_WORD})*){_ENDS}))*)"
)
"""A path of short segments, UUIDs, long hexadecimal numbers and words: nothing in it looks like a secret."""

PLAIN_ID: Final = re.compile("[0-9]{1,12}+|[0-9a-f]{8}+-[0-9a-f]{4}+-[0-9a-f]{4}+-[0-9a-f]{4}+-[0-9a-f]{12}+")
"""A number or a UUID, as `PLAIN_PATH` has them: none of the letters of a secret word is in it."""
