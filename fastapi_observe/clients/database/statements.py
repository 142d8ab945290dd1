"""SQL statements: the text without its values, the operation and the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, Final

MAX_COMMAND_LENGTH: Final = 256
"""Maximum length of a transaction command. A longer statement is a query."""

_QUERY_STARTS: Final = frozenset({"SEL", "INS", "UPD", "DEL", "WIT"})
_STARTS: Final = frozenset({"BEG", "STA", "COM", "END", "ROL", "ABO", "SAV", "REL"})
_TRANSACTION_COMMAND: Final = re.compile(
    r"""\s*+(?:
      (?P<begin> (?:BEGIN|START\s++TRANSACTION) (?>(?:[\s,]++(?:WORK|TRAN|TRANSACTION|DEFERRED|IMMEDIATE|EXCLUSIVE
          |ISOLATION|LEVEL|SERIALIZABLE|REPEATABLE|READ|COMMITTED|UNCOMMITTED|ONLY|WRITE|NOT|DEFERRABLE)\b)*) )
    | (?P<commit> (?:COMMIT|END) (?>(?:\s++(?:WORK|TRANSACTION|TRAN)\b)?) )
    | (?P<rollback> (?:ROLLBACK|ABORT) (?>(?:\s++(?:WORK|TRANSACTION|TRAN)\b)?) )
    | (?P<savepoint> (?:SAVEPOINT|SAVE\s++TRAN(?:SACTION)?) \s++[^\s;]++ )
    | (?P<rollback_savepoint> ROLLBACK\s++
        (?:(?:(?:WORK|TRANSACTION)\s++)?TO\s++(?:SAVEPOINT\s++)?|TRAN(?:SACTION)?\s++) [^\s;]++ )
    | (?P<release_savepoint> RELEASE\s++(?:SAVEPOINT\s++)?[^\s;]++ )
    )\s*+;?\s*+""",
    re.IGNORECASE | re.VERBOSE,
)
"""Does not match Oracle's `BEGIN work(); END;`, SQL Server's `BEGIN TRY` and `COMMIT PREPARED`."""


def transaction_event(statement: object) -> str | None:
    """Return the event of a transaction command (`begin`, `commit`, `savepoint` and others); None for a query."""
    if type(statement) is str and statement[:3] in _QUERY_STARTS:
        return None  # nearly every query
    if isinstance(statement, bytes):
        statement = statement[: MAX_COMMAND_LENGTH + 1].decode("latin-1")
    if not isinstance(statement, str) or (statement[:3].upper() not in _STARTS and not statement[:1].isspace()):
        return None
    match = None if len(statement) > MAX_COMMAND_LENGTH else _TRANSACTION_COMMAND.fullmatch(statement)
    return None if match is None else match.lastgroup


MAX_STATEMENT_LENGTH: Final = 2048
"""Maximum length of a recorded statement."""

MAX_PARSED_LENGTH: Final = 8192
"""Number of characters in which the table is searched. The list of columns of an ORM is long."""

MAX_CACHED_STATEMENTS: Final = 1024
"""Maximum number of statements in a `StatementCache`."""

MAX_TABLE_NAME_LENGTH: Final = 63
"""Maximum length of a table name with its schema."""

# The tokens of SQL. Where database systems disagree, the whole rest is hidden (`.*`): a backslash before a closing
# quote, a quote after `#`, a comment in a comment, Oracle's q'[...]'. Matching is linear in time: no repetition
# backtracks (`*+`; for groups `(?>(?:...)*)`, because Python 3.11.2 matches `(?:...)*+` wrongly), and two tokens share
# a few characters at most.
_PLAIN: Final = r"""(?P<kept>(?>(?:
      [^\W\d][\w$]*+(?!&?')
    | [\s,()=<>*+;!|~^%&{}]
    | \](?!\])
    | \.(?!\d)
    | \?(?:\d{1,5}(?![\w.$]))?
    | PARAMETER
    )+) | NAME )"""
_TAG: Final = r"(?:[A-Za-z_\x80-\U0010ffff][0-9A-Za-z_\x80-\U0010ffff]{0,62})?"
_REST: Final = r"[nN]?[qQ]'.* | \$[A-Za-z_\x80-\U0010ffff][0-9A-Za-z_\x80-\U0010ffff]{63}.*"
_THRICE: Final = r"'''.*|\"\"\".*"
_NUMBER: Final = r"\$?\.?\d(?>(?:[\w.]|(?<=[eE])[-+](?=\d))*)(?:\$.*)?"
_PREFIX: Final = r"(?:[nNxXbBrReE]|[rR][bB]|[bB][rR]|[uU]&)?"
_STRING: Final = _PREFIX + r"'(?>(?:[^'\\]|\\[^']|'')*)"
_STRING_WITHOUT_ESCAPES: Final = _PREFIX + r"'(?>(?:[^']|'')*)"
_STRING_WITH_ESCAPES: Final = r"[eE]'(?>(?:[^'\\]|\\.|'')*)"
_DOLLARS: Final = rf"\$(?P<tag>{_TAG})\$.*?(?:\$(?P=tag)\$|\Z)"
_DOLLARS_OR_NAMES: Final = rf"\$(?P<tag>{_TAG})\$(?:[^'\"`\\\#\[/$-]*+\$(?P=tag)\$|.*)"
_WORD: Final = r"""
    (?P<word>(?:_|(?i:DATE|TIME|TIMESTAMP|INTERVAL)(?=[&']))[\w$]*+| [^\W\d][\w$]*+(?=&))|(?P<before>[^\W\d][\w$]*+'.*)
"""

_LINE_END: Final = r"[^\n\r]*+(?:\r(?!\n)(?:[^\n'\"`$\[/]*+(?:\n|\Z)|.*))?"
_LINE: Final = "--" + _LINE_END
_LINE_OR_CODE: Final = rf"--(?=\s){_LINE_END}|(?:--|\#|//)(?:(?>(?:[^\n'\"`$\[/]|/(?!\*))*)(?:\n|\Z)|.*)"
_BLOCK: Final = r"/\*(?>(?:[^*/]|\*(?!/)|/(?!\*))*)(?:\*/|.*)"
_BLOCK_OR_CODE: Final = r"/\*M?!(?>(?:[^*/'\"`\#-]|\*(?!/)|/(?!\*)|-(?!-))*)(?:\*/|.*)"

_QUOTED: Final = r"""  "[^"'`\\]*+"(?!["\w$\\])  """
_TICKED: Final = r"`(?>(?:[^`'\"\\/\#-]|-(?!-)|/(?![*/]))*)`(?!`)"
_BRACKETED: Final = r"\[[\w .$\#@-]*+\](?!\])"
_DOUBLE: Final = r'"(?>(?:[^"]|"")*)'
_DOUBLE_ANYHOW: Final = r'"(?>(?:[^"\\]|\\[^"]|"")*)'
_END: Final = r"""(?:['"](?![\w$\\])|(?P<after>['"].*)|(?P<open>\\?\Z)|.*)"""
_BRACKETS: Final = r"\[(?>(?:[^\]]|\]\])*)(?:\]|.*)"
_BRACKETS_OR_LIST: Final = (  # read as a name or as a list, it ends at the same place
    r"(?:\[|\]\])(?!(?>(?:[^'\"`\[\]\\/\#$-]|-(?!-)|/(?![*/])|\$(?=\d)|'[^'\\\[\]]*+')*)(?:[\[\]]|\Z)).*"
)
_TICKS: Final = "`.*"
_NAMED: Final = "[:@]"
_NUMBERED: Final = rf"\$\d{{1,5}}(?![\w.$]) | {_NAMED}"
_NUMBERED_ANYHOW: Final = rf"[:$]\d{{1,5}}(?![\w.$]) | {_NAMED}"
_TCL_VARIABLE: Final = r"[$@:\#][\w$:]++(?<!\d{6})(?!\()"
_TCL_TEXT: Final = r"[$@:\#][\w$:]++\(.*"  # `$name(any text at all)`
_VARIABLE_TEXT: Final = r"\$[^\W\d][\w:]*+\(.*"


Grammar = Callable[[], re.Pattern[str]]
"""Returns a pattern, which is compiled at the first call: all of them would add 30 ms to the import."""


def _grammar(*, parameter: str, names: str, gaps: str, values: str) -> Grammar:
    kept = _PLAIN.replace("PARAMETER", parameter).replace("NAME", names)
    pattern = rf"{kept} | (?P<gap>{gaps}) | {_REST} | {values} | {_NUMBER} | {_TICKS} | {_WORD}"
    return cache(lambda: re.compile(pattern, re.DOTALL | re.VERBOSE))


_POSTGRESQL: Final = _grammar(
    parameter=_NUMBERED,
    names=f"{_QUOTED} | {_TICKED}",
    gaps=f"{_LINE} | {_BLOCK}",
    values=f"(?:{_STRING_WITH_ESCAPES}|{_STRING}|{_DOUBLE}){_END} | {_DOLLARS}",
)
_ORACLE: Final = _grammar(
    parameter=_NUMBERED_ANYHOW,
    names=_QUOTED,
    gaps=f"{_LINE} | {_BLOCK}",
    values=f"(?:{_STRING_WITHOUT_ESCAPES}|{_DOUBLE}){_END}",
)
_SQLITE: Final = _grammar(
    parameter=_TCL_VARIABLE,
    names=f"{_QUOTED} | {_TICKED} | {_BRACKETED}",
    gaps=f"{_LINE} | {_BLOCK}",
    values=f"{_TCL_TEXT} | (?:{_STRING_WITHOUT_ESCAPES}|{_DOUBLE}){_END} | {_BRACKETS}",
)
_SQL_SERVER: Final = _grammar(
    parameter=_NAMED,  # `$1` is an amount of money
    names=_BRACKETED,
    gaps=f"{_LINE} | {_BLOCK}",
    values=f"(?:{_STRING_WITHOUT_ESCAPES}|{_DOUBLE}){_END} | {_BRACKETS}",
)
_ANY: Final = _grammar(
    parameter=_NUMBERED,
    names=_TICKED,
    gaps=f"{_LINE_OR_CODE} | {_BLOCK_OR_CODE} | {_BLOCK}",
    values=f"{_THRICE}|(?:{_STRING}|{_DOUBLE_ANYHOW}){_END}|{_BRACKETS_OR_LIST}|{_DOLLARS_OR_NAMES}|{_VARIABLE_TEXT}",
)

_NOT_SQL: Final = "redis valkey memcached mongodb elasticsearch opensearch dynamodb aws.dynamodb couchdb geode hbase"
_GRAMMARS: Final[dict[str, Grammar | None]] = {
    **dict.fromkeys(_NOT_SQL.split()),
    "postgresql": _POSTGRESQL,
    "cockroachdb": _POSTGRESQL,
    "aws.redshift": _POSTGRESQL,
    "oracle.db": _ORACLE,
    "sqlite": _SQLITE,
    "microsoft.sql_server": _SQL_SERVER,
}
"""Grammars by `db.system.name`, None for languages other than SQL. `_ANY` is safe for every other system."""

# The following patterns apply to text without literals and comments, with single spaces.
_ITEM: Final = r"(?:\?\d*+|[$:@]\w++|%s|%\(\w++\)s)(?:::[\w ]++(?:\[\])?)?"
_ROW: Final = r"\((?>(?:[^()]|\((?>(?:[^()]|\([^()]*+\))*)\))*)\)"
_SIGNS: Final = re.compile(r"[-+](?<![-+].)(?<![-+] .)[-+ ]*+(?=\?)")
_LAST_WORD: Final = re.compile(r"[\w$]*\Z")
_BEFORE_A_SIGN: Final = frozenset(
    """SELECT DISTINCT ALL AND OR NOT BETWEEN WHEN THEN ELSE CASE WHERE ON HAVING BY IN LIKE IS LIMIT OFFSET VALUES SET
    RETURN RETURNING DEFAULT WITH START INCREMENT MINVALUE MAXVALUE""".split()  # noqa: SIM905 - a list would be a page
)
_SETTING: Final = r"""(?<![\w.@$"`])SET\b(?:\ ?(?>(?:[\w.@$]|"[^"]*+"|`[^`]*+`)+)){1,2}\ ?(?::?=|TO\b)"""
_WITHIN: Final = r"""(?:"[^"]*+"|`[^`]*+`|\[[\w\ .$\#@-]*+\]|[^"`;\[]|\[(?![\w\ .$\#@-]*+\]))"""
_BEFORE_A_BARE_VALUE: Final = rf"""
    (?:\A|;)[\ (\{{]*+(?:
        {_SETTING}
        | ALTER\b{_WITHIN}*?{_SETTING}
        | (?:CREATE|ALTER)\ (?:USER|ROLE|LOGIN)\b{_WITHIN}*?\bPASSWORD\b
        | COPY\b(?>{_WITHIN}*?\bFROM\ STDIN\b)(?>{_WITHIN}*);(?=.)
    )
    | IDENTIFIED\ BY\b | PRAGMA\ [\w.]*key\b
"""
_MANY: Final = re.compile(
    rf"""(?P<secret>{_BEFORE_A_BARE_VALUE}).*
    | (?P<plain>(?>(?:(?!(?:IN|VALUES|IDENTIFIED|PRAGMA)\b)\w++|[^\w"`\[;]++)+))
    | (?P<name>"[^"]*+"|`[^`]*+`|\[[\w .$\#@-]*+\])
    | (?P<list>(?:IN\ ?\(|\[){_ITEM})(?>(?:,\ ?{_ITEM}(?![\w(]))+)(?:,[^()\[\]]*\Z)?
    | (?P<rows>VALUES\ ?{_ROW})(?>(?:,\ ?{_ROW})*)(?:,(?:\ ?\([^)]*+)?\Z)?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MANY_STARTS: Final = ("SET", "CREATE ", "ALTER ", "(", "{")
_MANY_WORDS: Final = ("IN (", "IN(", "VALUES", "[", "IDENTIFIED BY", "PRAGMA")
"""Strings that `_MANY` can match. Searching them costs a tenth of matching it."""

# SQLite reads "text" as a string if no column has that name, but not at these places.
_SURE_NAME: Final = re.compile(
    r"""((?:\b(?:(?<!\bDISTINCT\ )FROM|INTO|UPDATE|JOIN|TABLE|AS)\ |\.)"[^"]*+"|"[^"]*+"(?=\.))|"[^"]*+\"""",
    re.IGNORECASE | re.VERBOSE,
)

_COMMAND: Final = re.compile(r"(?:[A-Za-z][A-Za-z_.]{0,31})?")
_BROKEN: Final = "\ud800"
_OPEN: Final = "\ud801"
"""Last character of a text that was cut because of wrong quotes, or a quote without end. Input never has them."""
_REPLACEMENTS: Final = {"gap": " ", "before": _BROKEN, "after": _BROKEN, "open": _OPEN}


def _replace_token(match: re.Match[str]) -> str:
    kind = match.lastgroup or ""
    return match[0] if kind in {"kept", "word"} else _REPLACEMENTS.get(kind, "?")


def _without_literals(text: str, whole: str, grammar: re.Pattern[str]) -> str:
    shown = grammar.sub(_replace_token, text)
    end = shown[-1:]
    if end not in {_BROKEN, _OPEN}:
        return shown
    if end == _OPEN and len(text) < len(whole):
        end = grammar.sub(_replace_token, whole)[-1:]
    if end != _BROKEN and (end != _OPEN or len(whole) >= MAX_PARSED_LENGTH):  # open only because it was cut
        return shown[:-1] + "?"
    # Text that looks like code may be a value: everything from the first quote on is hidden.
    quoted = [match for match in grammar.finditer(text) if match.lastgroup != "gap" and {*"'\""} & {*match[0]}]
    names_too = quoted[-1][0][0] == '"'
    first = next(match.start() for match in quoted if names_too or match.lastgroup != "kept")
    return grammar.sub(_replace_token, text[:first]) + "?"


def _replace_many(match: re.Match[str]) -> str:
    kind = match.lastgroup or ""
    return f"{match[kind]} ?" if kind == "secret" else match[kind]


def _replace_sign(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 11) : match.start()].rstrip()
    word = _LAST_WORD.findall(before)[0]
    if word.upper() in _BEFORE_A_SIGN or not (word or before[-1:] in {")", "]", "?", '"', "`"}):
        return ""
    return match[0][0] + " " * (len(match[0]) > 1)


def _without_values(text: str, system: str, whole: str = "") -> str:
    grammar = _GRAMMARS.get(system, _ANY)
    if grammar is None:  # not SQL: the first word is the command
        first, *more = text.split(None, 1) or [""]
        return first + " ?" * len(more) if _COMMAND.fullmatch(first) else "?"
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # with a lone surrogate the whole batch of spans would be lost
    text = " ".join(_without_literals(text, whole or text, grammar()).split())
    if system == "sqlite" and '"' in text:
        text = _SURE_NAME.sub(lambda name: name[1] or "?", text)
    if "-" in text or "+" in text:
        text = _SIGNS.sub(_replace_sign, text)
    folded = text.upper()
    if folded.startswith(_MANY_STARTS) or ";" in folded[:-1] or any(word in folded for word in _MANY_WORDS):
        text = _MANY.sub(_replace_many, text)
    return text


def sanitize_sql(statement: str, system: str = "other_sql") -> str:
    """Return the first 2,048 characters of a statement with `?` for every literal, on one line, without comments.

    `system` is the `db.system.name`. Where systems read the same text differently, too much is hidden, never too
    little. If quotes are wrong, everything from the first quote on is hidden; of other languages (Redis, MongoDB)
    everything but the first word. Of the placeholders of an `IN` list, and of the rows of `VALUES`, the first is kept,
    so that there are few different texts.
    """
    return _without_values(statement[:MAX_STATEMENT_LENGTH], system, statement[:MAX_PARSED_LENGTH])[
        :MAX_STATEMENT_LENGTH
    ]


@dataclass(frozen=True, slots=True)
class Statement:
    """The recorded parts of a statement.

    `text` is the statement without its literals. `operation` is its keyword (for `WITH` that of the statement after
    it), one of about sixty, or `OTHER`. `table` is the first table that it reads or changes, or None: as written, with
    its schema but without quotes, as the semantic conventions demand.
    """

    text: str
    operation: str
    table: str | None


def parse_statement(statement: object, system: str = "other_sql") -> Statement:
    """Parse a statement: a string, bytes, or an object that becomes a string, such as an SQLAlchemy construct.

    Parses 2,048 characters, and 8,192 to find the table of a longer statement. Raises nothing: an object that cannot
    become a string has the text "".
    """
    return _parse(_to_text(statement), system)


class StatementCache:
    """Caches the last `MAX_CACHED_STATEMENTS` parsed statements, redacted. Thread-safe."""

    __slots__ = ("_known", "_lock", "_redact")

    def __init__(self, redact: Any = str) -> None:
        self._redact = redact
        self._known: dict[tuple[str | int, str], Statement] = {}
        self._lock = Lock()

    def parse_statement(self, statement: object, system: str = "other_sql") -> Statement:
        """Parse a statement as the function `parse_statement` does, once."""
        text = statement if type(statement) is str and len(statement) <= MAX_STATEMENT_LENGTH else _to_text(statement)
        # A long text is cached by its hash, not held in memory. A collision shows another text, also without values.
        key = (text if len(text) <= MAX_STATEMENT_LENGTH else hash(text), system)
        known = self._known.get(key)
        if known is None:
            known = _parse(text, system, self._redact)
            with self._lock:
                if len(self._known) >= MAX_CACHED_STATEMENTS:
                    del self._known[next(iter(self._known))]
                self._known[key] = known
        return known


def _to_text(statement: object) -> str:
    try:
        if isinstance(statement, (bytes, bytearray, memoryview)):
            return bytes(statement[: 4 * MAX_PARSED_LENGTH]).decode("utf-8", "replace")[:MAX_PARSED_LENGTH]
        return str.__getitem__(str(statement), slice(MAX_PARSED_LENGTH))
    except Exception:  # noqa: BLE001 - `__str__` may raise anything
        return ""


def _parse(text: str, system: str, redact: Any = str) -> Statement:
    shown = sanitize_sql(text, system)
    operation, table = _operation_and_table(shown)
    if table is None and len(text) > MAX_STATEMENT_LENGTH:
        operation, table = _operation_and_table(_without_values(text, system))
    return Statement(redact(shown), operation, table and redact(table))


_OPERATIONS_ON_TABLES: Final = frozenset(
    """SELECT INSERT UPDATE DELETE MERGE UPSERT REPLACE CREATE ALTER DROP TRUNCATE EXPLAIN DECLARE COPY LOCK VACUUM
    ANALYZE DESCRIBE DESC TABLE VALUES WITH""".split()  # noqa: SIM905 - a list would be a page long
)
_OPERATIONS: Final = _OPERATIONS_ON_TABLES | frozenset(
    """CALL EXEC EXECUTE BEGIN START COMMIT END ROLLBACK ABORT SAVEPOINT RELEASE SET RESET SHOW PRAGMA GRANT REVOKE
    UNLOCK USE FETCH MOVE CLOSE OPEN PREPARE DEALLOCATE LISTEN NOTIFY UNLISTEN ATTACH DETACH REINDEX CLUSTER REFRESH
    COMMENT RENAME OPTIMIZE CHECKPOINT DISCARD DO IMPORT LOAD KILL""".split()  # noqa: SIM905
)
_TABLE_FIRST: Final = frozenset({"COPY", "LOCK", "VACUUM", "ANALYZE", "TRUNCATE", "DESCRIBE", "DESC"})
"""Operations that are followed by their table."""

_NO_TABLES: Final = frozenset(
    """SELECT VALUES WITH SET ON OF IN WHERE USING AS DEFAULT OUTFILE DUMPFILE STDIN STDOUT FUNCTION SKIP NOWAIT ONLY
    TABLE LATERAL FROM INTO RETURNING""".split()  # noqa: SIM905
)
"""Words that can follow in place of a table, and are a table only if quoted."""

_FIRST: Final = re.compile(r"[\s({;]*+([A-Za-z]+)(?![\w$.])")
_READ: Final = "SELECT|DELETE|VALUES"
_SOURCE: Final = r"(?<!\bDISTINCT\ )FROM|JOIN"
_TARGET: Final = r"INSERT|MERGE|UPSERT|TABLES?|(?<!\bOR\ )REPLACE|(?<!\bFOR\ )(?<!\bDO\ )(?<!\bKEY\ )(?<!\bON\ )UPDATE"
_MARK: Final = re.compile(
    rf"""(?>(?:(?!(?:{_READ}|{_SOURCE}|{_TARGET})(?![\w$.]))[\w$.:@]++|[^\w$.:@()"`\[]++)+)
    | "[^"]*+" | `[^`]*+` | \[[\w .$\#@-]*+\] | (?P<open>\() | (?P<close>\))
    | (?P<read>{_READ}) | (?P<source>{_SOURCE}) | (?P<target>{_TARGET})""",
    re.IGNORECASE | re.VERBOSE,
)
_PART: Final = r"""(?:[^\W\d][\w$]*+|"[^"]*+"|`[^`]*+`|\[[\w .$\#@-]*+\])"""
_TABLE: Final = re.compile(
    rf"""(?P<parens>[ (]*+)
    (?>(?:(?:
        INTO|ONLY|LATERAL|TABLES?|IF\ NOT\ EXISTS|IF\ EXISTS|OR\ (?:ABORT|FAIL|IGNORE|REPLACE|ROLLBACK)|IGNORE|ALL|FIRST
        |TOP\ ?\(\?\)|LOW_PRIORITY|HIGH_PRIORITY|DELAYED|OVERWRITE|QUICK|FULL|FREEZE|VERBOSE|ANALYZE|FROM
    )\ \(?){{0,5}})
    (?P<name>{_PART}(?>(?:\.\.?{_PART})*))(?=[\s,;()]|\Z)(?P<call>\()?""",
    re.IGNORECASE | re.VERBOSE,
)
_COMMON_TABLE: Final = re.compile(
    rf"(?:\bWITH|\bRECURSIVE|,)\ ?({_PART})(?:\ ?\([^()]*+\))?\ ?AS\ (?:NOT\ )?(?:MATERIALIZED\ )?\(", re.IGNORECASE
)
_UNQUOTED: Final = str.maketrans("", "", '"`[]')
_TABLE_NAME: Final = re.compile(rf"[\w$][\w$.]{{0,{MAX_TABLE_NAME_LENGTH - 1}}}")
_OPERATION_NAME: Final = re.compile(r"[A-Za-z][A-Za-z_. ]{0,31}")


def is_name(text: str) -> bool:
    """Return whether a string is a table name, with or without its schema, and not a statement."""
    return _TABLE_NAME.fullmatch(text) is not None


def is_operation(text: str) -> bool:
    """Return whether a string can be the name of an operation: at most 32 letters, underscores, dots, spaces."""
    return _OPERATION_NAME.fullmatch(text) is not None


def _operation_and_table(text: str) -> tuple[str, str | None]:
    first = _FIRST.match(text)
    operation = first[1].upper() if first else ""
    if first is None or operation not in _OPERATIONS_ON_TABLES:
        return (operation if operation in _OPERATIONS else "OTHER"), None
    table = _table(text, first.end()) if operation in _TABLE_FIRST else None
    if table:
        return operation, table
    return _search_table(text, first.start(1), operation)


def _search_table(text: str, start: int, operation: str) -> tuple[str, str | None]:
    # The outermost table counts: `SELECT (SELECT max(a) FROM b) FROM c` reads c, and `WITH a AS (SELECT ... FROM b)
    # INSERT INTO c` writes c. A parenthesis without a SELECT belongs to a function, as in `EXTRACT(day FROM a)`.
    common = {_bare(name).lower() for name in _COMMON_TABLE.findall(text)} if operation == "WITH" else ()
    reads, inside, nested = [True], False, None
    for mark in _MARK.finditer(text, start):
        kind = mark.lastgroup
        if kind == "open":
            reads.append(False)
            continue
        if kind == "close":
            del reads[max(1, len(reads) - 1) :]
            continue
        if kind in {"read", "target"} and operation == "WITH" and len(reads) == 1:
            operation = mark[0].upper()
        if kind == "read":
            reads[-1] = True
        elif kind == "target" or (kind == "source" and reads[-1]):
            table = _table(text, mark.end(), of_a_read=kind == "source")
            if table is None:
                inside = inside or len(reads) == 1
            elif table.lower() not in common:
                if inside or len(reads) == 1:
                    return operation, table
                nested = nested or table
    named = _table(text, start + len(operation)) if operation == "DELETE" else None
    return operation, named or nested


def _table(text: str, at: int, *, of_a_read: bool = False) -> str | None:
    match = _TABLE.match(text, at)
    if match is None or (match["call"] if of_a_read else "(" in match["parens"]):
        return None
    name = _bare(match["name"])
    return name if match["name"].upper() not in _NO_TABLES and is_name(name) else None


def _bare(name: str) -> str:
    return name.translate(_UNQUOTED)
