"""Free text, queries and the user's own rules: what is redacted and what stays, in linear time."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_observe.redaction import patterns as redaction_patterns
from fastapi_observe.redaction.patterns import MAX_SCANNED_LENGTH, is_card_number
from fastapi_observe.redaction.redactor import (
    DEFAULT_REDACTOR,
    MARGIN,
    MAX_PATH_LENGTH,
    MAX_QUERY_BYTES,
    MAX_USER_PATTERN_LENGTH,
    Redactor,
)
from fastapi_observe.settings.model import ObserveSettings

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
CARD = "4111111111111111"


FREE_TEXT = [
    ("no route to postgres://shop:hunter2@db/shop", "no route to postgres://REDACTED:REDACTED@db/shop"),
    ("401 for url 'https://x.example/a?api_key=hunter2'", "401 for url 'https://x.example/a?api_key=REDACTED'"),
    ("[parameters: ('hunter2', [1])]\n(Background ...)", "[parameters: REDACTED]\n(Background ...)"),
    ("input_value='hunter2', input_type=str]", "input_value=REDACTED, input_type=str]"),
    ("order 7 was not found: ratio 3:4, a@b", "order 7 was not found: ratio 3:4, a@b"),
    (
        "see https://x.example/reset-password/abc/x?page=1#top",
        "see https://x.example/reset-password/REDACTED/x?page=1#REDACTED",
    ),
    ("a ? b", "a ? b"),
    ("to mysql app:hunter2@tcp(db:3306)/shop", "to mysql REDACTED:REDACTED@tcp(db:3306)/shop"),
    ("password = hunter2 and more", "password = REDACTED and more"),
    ("password[]=hunter2&a[tokens][0]=ab12cd34", "password[]=REDACTED"),
    ("Api Keys: hunter2, backup code: hunter2", "Api Keys: REDACTED backup code: REDACTED"),
    ("list[0] = hunter2, api keys: 5", "list[0] = hunter2, api keys: 5"),
    ('{"user":"ann","password":"hun\\"ter2","x":1}', '{"user":"ann","password":"REDACTED","x":1}'),
    ('{\\"clientSecret\\": \\"hunter2\\", \\"x\\": 1}', '{\\"clientSecret\\": \\"REDACTED\\", \\"x\\": 1}'),
    ('{"otp":123456,"x":1} {"cvv": 123}', '{"otp":"REDACTED","x":1} {"cvv": "REDACTED"}'),
    ("{'credentials': ['hunter2', 'x']} and so on", "{'credentials': REDACTED"),
    ("the api key: hunter2; an old key: x", "the api key: REDACTED an old key: x"),
    ("Authorization: Digest username=x, response=y\nHost: z", "Authorization: REDACTED\nHost: z"),
    ("Cookie: a=b; c=d\nHost: z", "Cookie: REDACTED\nHost: z"),
    (
        "seed phrase: abandon ability able\nseed_phrase='abandon ability' x",
        "seed phrase: REDACTED\nseed_phrase=REDACTED x",
    ),
    ("token=Bearer hunter2 x", "token=REDACTED x"),
    ("sent Bearer hunter2hunter2", "sent Bearer REDACTED"),
    ("Bearer authentication failed, token expired soon", "Bearer REDACTED failed, token expired soon"),
    ("Token 0123456789abcdef and Basic YW5uOmh1bnRlcjI=", "Token REDACTED and Basic REDACTED"),
    ("WHERE password = ? AND token=$1, secret = :pw", "WHERE password = ? AND token=$1, secret = :pw"),
    ("password: ", "password: "),
    (
        "status_code=200 code: 5 state: x pin: 3 public_key=abc",
        "status_code=200 code: 5 state: x pin: 3 public_key=abc",
    ),
    (f"got {JWT} twice", "got REDACTED twice"),
    ("AKIAIOSFODNN7EXAMPLE ASIAIOSFODNN7EXAMPLE AIza" + "x" * 35, "REDACTED REDACTED REDACTED"),
    ("ghp_0123456789abcdefXYZ github_pat_0123456789abcdef_", "REDACTED REDACTED"),
    ("glpat-0123456789abcdef pypi-0123456789abcdef npm_0123456789abcdefghij", "REDACTED REDACTED REDACTED"),
    (
        "sk_live_0123456789 rk_test_0123456789 sk-0123456789abcdef xoxb-0123456789",
        "REDACTED REDACTED REDACTED REDACTED",
    ),
    (
        "task-0123456789abcdef desk_live ghosts_and_ghouls Jolly",
        "task-0123456789abcdef desk_live ghosts_and_ghouls Jolly",
    ),
    ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY----- x", "REDACTED x"),
    ("-----BEGIN RSA PRIVATE KEY-----\nabc", "REDACTED"),
    ("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----"),
    (f"paid with {CARD} or 4111 1111-1111 1111.", "paid with REDACTED or REDACTED."),
    (f"{CARD} {CARD} {CARD}", "REDACTED REDACTED REDACTED"),
    ("4111111111111112 1720000000000000000 x4111111111111111 0.4111111111111111", None),
    ("Ünïcödé pässword: x, password: ü", "Ünïcödé pässword: x, password: REDACTED"),
    ('value "99999999999" is out of range for type integer', "value REDACTED is out of range for type integer"),
]


def test_free_text() -> None:
    """What looks like a secret, and the value of a secret name, is redacted; the rest of a sentence stays."""
    for text, shown in FREE_TEXT:
        assert Redactor(capture_query_parameters=["page"]).text(text) == (text if shown is None else shown)


def test_card_numbers() -> None:
    """A card number has 13 to 19 digits, starts with 2 to 6 and has a valid checksum."""
    assert is_card_number("4111111111111111")
    assert is_card_number("378282246310005")
    for wrong in ("4111111111111112", "1111111111111117", "411111111111", "4" * 20):
        assert not is_card_number(wrong)


PIECES = st.sampled_from(
    """password= token: secret " ' \\ :// @ ? & = : / a b1 eyJhbGciOiJI . - _ Bearer \n [SQL: [parameters: ; #
    input_value= , ] 4111111111111111 ghp_0123456789abcdef -----BEGIN PRIVATE KEY----- api key REDACTED ( { x=y
    Cookie: %s %3D %26 %25 %20 %22 \\u0026 session 0b1ea9b2d3c44f55 sid: tokens 512""".split(" ")  # noqa: SIM905 - a list would be a page long
)
TEXTS = st.one_of(
    st.text(max_size=300), st.lists(PIECES, max_size=30).map(" ".join), st.lists(PIECES, max_size=30).map("".join)
)


@given(TEXTS)
@example("SECRET%2500")
@example("SECRET%2525")
def test_redaction_is_idempotent_for_any_text(text: str) -> None:
    """Nothing raises, the length is bounded, and redacting the result again changes nothing."""
    for redactor in (DEFAULT_REDACTOR, Redactor(names=["x"], capture_query_parameters=["x"])):
        shown = redactor.text(text)
        assert len(shown) <= MAX_SCANNED_LENGTH
        assert redactor.text(shown) == shown


WORST = """password= ://a:b@ eyJ eyJabc. Bearer_ token_ 4111-1111_ [SQL:_ ?a= a:a@ sk- ghp_ -----BEGIN_A_A_A_ a.
a_b: input_value= value_" api_key= = password:[ password=\\" \\ basic_a malformed_aaaa ://a@ password='
https://token/ /token/a % ab:cd_ 4""".split()  # noqa: SIM905 - a list would be a page long


WORST_UNITS = [each.replace("_", " ") for each in WORST]


def test_long_texts_are_cut_before_they_are_scanned() -> None:
    """64 KiB of the worst text give the result of its first 8 KiB: no more was scanned."""
    for unit in WORST_UNITS:
        for redactor in (DEFAULT_REDACTOR, Redactor(patterns=["hunter2"])):
            long = unit * (65_536 // len(unit))
            assert redactor.text(long) == redactor.text(long[:MAX_SCANNED_LENGTH])
            assert redactor.path(long) == redactor.path(long[: MAX_PATH_LENGTH + MARGIN])
            assert redactor.query(long) == redactor.query(long[: MAX_QUERY_BYTES + MARGIN])


def test_every_pattern_takes_linear_time() -> None:
    """Unbounded repeats are possessive, or lazy up to a fixed string: no pattern backtracks."""
    patterns = [each for each in vars(redaction_patterns).values() if isinstance(each, re.Pattern)]
    assert len(patterns) > 5
    for pattern in patterns:
        atomic = re.sub(r"(?<!\\)[*+}]\)[*+]\)", "", pattern.pattern)  # `(?>(?:...)*)`
        assert not re.search(r"(?<!\\)[*+}]\)[*+](?!\+)", atomic), pattern.pattern
        assert pattern.pattern.count("(?>(?:") >= (len(pattern.pattern) - len(atomic)) / 4, pattern.pattern


PLACES_IN_TEXT = [
    "password == {}",
    "password := {}",
    "mysqldump --password {} db",
    "java -jar app.jar --spring.datasource.password {} --debug",
    "Command '['mysql', '--password', '{}']' failed",
    "<password>{}</password>",
    "<wsse:Password Type='x'>{}</wsse:Password>",
    '<input name="password" value="{}">',
    '{{"name": "password", "value": "{}"}}',
    "[(b'cookie', b'x={}'), (b'x-api-key', b'{}')]",
    "ParameterKey=Password,ParameterValue={}",
    "- name: SSH_KEY\n      value: {}",
    "secret :: {}",
    'Bearer "{}"',
    "Bearer: {}",
    "Bearer%20{}",
    "password%3D{}",
    "next=%2522password%2522%253A%2522{}%2522",
    "password%25253D{}",
    '{{"pin": "{}"}}',
    "{{'session': '{}'}}",
    "AccountName=a;AccountKey={};End",
    "hf_{}abcdefghijklmnopqrstuvwx",
    "SG.{}abcdefghijklmnop.abcdefghijklmnopqrstuvwxyz",
    "ya29.{}aaaaaaaaaaaaaaaaaaaaaaaaaa",
    "whsec_{}aaaaaaaaaaaaaaaaaaaaaaaaa",
    "shpat_{}aaaaaaaaaaaaaaaaaaaaaaa",
    "xapp-1-{}aaaaaaaaaaaaaa",
    "hvs.{}aaaaaaaaaaaaaaaaaaaaa",
    "dop_v1_{}aaaaaaaaaaaaaaa",
    "https://hooks.slack.com/services/T00000000/B00000000/{}abcdefghijklmnop",
    "https://api.telegram.org/bot123456789:AAF{}abcdefghijklmnopqrstuvwx/send",
    "db failed: (1062, \"Duplicate entry '{}' for key 'u'\")",
    "db failed: Key (email)=({}) already exists.",
    "db failed: no such table: {}",
    "db failed: table u has no column named {}",
    "db failed: no such index: {}",
    "db failed: no such savepoint: {}",
    "db failed: unable to open database: /{}",
    'db failed: near "{}": syntax error',
    "1 validation error:\n  {{'type': 'x', 'loc': ('body',), 'msg': 'm', 'input': {{'a': 'b\n{}'}}, 'url': 'u'}}\n",
    "[{{'type': 'x', 'loc': ('body',), 'msg': 'm', 'ctx': {{'error': ValueError('{}')}}}}]",
    '[{{"type":"x","loc":["body"],"msg":"m","input":"{}"}}]',
    "[type=x, input_value={{'a': 'b, input_type=', 'c': '{}'}}, input_type=dict]",
]


def test_places_of_secrets_in_text() -> None:
    """Options, pairs, XML elements, driver errors inside other texts, rejected input, tokens with a known prefix."""
    for text in PLACES_IN_TEXT:
        assert "hunter2Zq" not in DEFAULT_REDACTOR.text(text.format(*["hunter2Zq"] * 2))
        assert "hunter2Zq" not in DEFAULT_REDACTOR.text("x, " + text.format(*["hunter2Zq"] * 2))


PERCENT_ENCODED = [
    ("to /login?next=%2Fa%3Ftoken%3Dhunter2", "hunter2"),
    ("cb x%26password%3Dhunter2%26y", "hunter2"),
    ("cb ?a=1%26password=hunter2", "hunter2"),
    ("state %7B%22password%22%3A%22hunter2%22%7D", "hunter2"),
    ("see %68ttps://ann:hunter2%40x.example", "hunter2"),
    (f"jwt {JWT.replace('.', '%2E').replace('e', '%65')}", "c2lnbmF0dXJl"),
    ("filter%5Bpassword%5D=hunter2", "hunter2"),
    ('{"url":"/a?x=1\\u0026password\\u003dhunter2"}', "hunter2"),
    ("https://x.example/a%2Freset-password%2Fhunter2", "hunter2"),
    ("p%61sswords=['hunter2']", "hunter2"),
    ('got p%61ssword = "hunter2"', "hunter2"),
    ("p%61ssword='hunter2' and more", "hunter2"),
]


def test_text_is_redacted_percent_decoded_too() -> None:
    """A secret whose name starts after an encoded character is found; a word without a secret stays encoded."""
    for text, secret in PERCENT_ENCODED:
        assert secret not in DEFAULT_REDACTOR.text(text), text
    assert DEFAULT_REDACTOR.text("100% of /a%20b and %3D, at %d") == "100% of /a%20b and %3D, at %d"


SESSION_ID = "0b1ea9b2d3c44f55a6b7c8d9e0f1a2b3"


def test_ids_of_sessions() -> None:
    """An id after `session` is redacted with or without `ID` and a colon; an ordinary word is not."""
    for text in (
        "Terminating session: {}",
        "Session '{}' is gone",
        "session [{}] closed",
        "session -> {}",
        "session-id {}",
        "no session with ID '{}'",
        "sid {}, sid=REDACTED",
        "session ID: {}",
        "Session {} not found",
        "sid: {}",
        "session id {}",
        "auth={}",
    ):
        assert DEFAULT_REDACTOR.text(text.format(SESSION_ID)) == text.format("REDACTED")
        assert "9b2d" not in DEFAULT_REDACTOR.text(text.format("0b1ea9b2-d3c4-4f55-a6b7-c8d9e0f1a2b3"))
        if not text.startswith("auth"):
            assert DEFAULT_REDACTOR.text(text.format("sess_9f8a7b")) == text.format("REDACTED")
    for text in ("session: '{}'", "session: [{}]"):
        assert DEFAULT_REDACTOR.text(text.format(SESSION_ID)) == "session: REDACTED"
    text = "sessions: 12 active, session expired at 2026-11-29, session timeout=30s, session took 120ms, sid: 5"
    assert DEFAULT_REDACTOR.text(text) == text
    line = """Traceback (most recent call last):
  File "/app/main.py", line 3, in call
    session = Http2Session(engine1)
ValueError: 3"""
    assert DEFAULT_REDACTOR.text(line) == line
    text = "session: closed, code: 404, sign: positive, session timeout, code: ERR_HTTP2_STREAM_ERROR"
    assert DEFAULT_REDACTOR.text(text) == text


TRACEBACK = """Traceback (most recent call last):
  File "/app/main.py", line 3, in call
    {}
    ^^^^^^^^^
  File "/app/client.py", line 9, in send
    raise TimeoutError(host)
TimeoutError: db
"""
SOURCE_LINES = [
    ("connect(password=settings.password, host=host, port=5432)", "connect(password=REDACTED, host=host, port=5432)"),
    ("connect(password=p,host=host)", "connect(password=REDACTED,host=host)"),
    ('connect(user, password=SecretStr("hunter2"), retries=3)', "connect(user, password=REDACTED, retries=3)"),
    ('send(headers={"Authorization": f"Bearer {t}"}, url=url)', 'send(headers={"Authorization": REDACTED}, url=url)'),
    ('send(headers={"Authorization": bearer(t)}, url=url)', 'send(headers={"Authorization": REDACTED}, url=url)'),
    ("def login(user: str, password: str) -> None:", "def login(user: str, password: REDACTED) -> None:"),
    ("if token == expected and user == owner:", "if token == REDACTED and user == owner:"),
    (r'run("echo \"a\" --password=hunter2 shop", x)', r'run("echo \"a\" --password=REDACTED shop", x)'),
    ('run("mysql --password=hunter2 shop", check=True)', 'run("mysql --password=REDACTED shop", check=True)'),
    ("credentials = [first, second]; call(credentials)", "credentials = REDACTED; call(credentials)"),
    ('load("-----BEGIN PRIVATE KEY-----abc", x)', 'load("REDACTED'),
    ('parse(f"<password>{p}", x)', 'parse(f"<password>{p}", x)'),
]


def test_source_lines_stay_readable_after_a_secret() -> None:
    """In a line of source code only the value is redacted; the rest of the line and the next frames stay."""
    for line, shown in SOURCE_LINES:
        assert DEFAULT_REDACTOR.text(TRACEBACK.format(line)) == TRACEBACK.format(shown).replace(
            'load("REDACTED\n    ^^^^^^^^^', 'load("REDACTED'
        )
    deep = TRACEBACK.format("call(\n    1,\n" + "    2,\n" * 20 + "    password=a,b)")
    assert "password=REDACTED\n" in DEFAULT_REDACTOR.text(deep)  # too far from the frame: not known as a source line
    # Outside tracebacks a value may contain any character but white space.
    assert DEFAULT_REDACTOR.text("password=hun,ter2)x y") == "password=REDACTED y"


def test_names_and_values_in_text() -> None:
    """Keys for names and values in any case, values before names, and tuples of three."""
    for text in (
        '{"Key": "Password", "Value": "hunter2"}',
        '{"ParameterKey":"DBPassword","ParameterValue":"hunter2"}',
        '{"VALUE": "hunter2", "KEY": "api_key"}',
        "Value=hunter2, Name='token'",
        "('password', '=', 'hunter2')",
        "('authorization', 'Basic x hunter2', True)",
    ):
        assert "hunter2" not in DEFAULT_REDACTOR.text(text), text
    text = '{"Key": "Color", "Value": "red"} {"value": 1, "name": "lamp"} (\'a\', \'b\', \'c\')'
    assert DEFAULT_REDACTOR.text(text) == text


def test_ordinary_names_keep_their_values() -> None:
    """Options, pairs, elements and quoted names that are not secret stay next to one that is."""
    text = "passwords: 1 --port 80 ('a', 'b') <b>c</b> name='a' value=b 'x': 1 \"pins=2"
    assert DEFAULT_REDACTOR.text(text) == text.replace("passwords: 1", "passwords: REDACTED")


QUERIES = [
    (b"q=lamp&page=2", "q=REDACTED&page=2"),
    (b"eyJhbGciOiJzZWNyZXQtdG9rZW4", "REDACTED"),
    (b"page&x", "page&REDACTED"),
    (b"a=&&b=1;c=2", "a=&&b=REDACTED&c=REDACTED"),
    (b"p%61ge=2&filter[page]=3", "p%61ge=2&filter[page]=REDACTED"),
    (b"user[password]=x&Policy=y", "user[password]=REDACTED&Policy=REDACTED"),
    (b"token=x&code=y", "token=REDACTED&code=REDACTED"),
    (f"page={JWT}&page=%65%79J{JWT[3:]}".encode(), "page=REDACTED&page=REDACTED"),
    (f"{JWT}=1&page={CARD}&page".encode(), "REDACTED=REDACTED&page=REDACTED&page"),
    (b"page=password%3Dx&page=a+b", "page=REDACTED&page=a+b"),
]


def test_capture_all_parameters() -> None:
    """`*` captures every parameter, except secret names, what looks like a secret, and values without a name."""
    redactor = Redactor(capture_query_parameters=["*"])
    assert redactor.query("page=2&q=z&*=1") == "page=2&q=z&*=1"
    assert redactor.query(f"token=x&Policy=y&q={JWT}&abc") == "token=REDACTED&Policy=REDACTED&q=REDACTED&REDACTED"


def test_values_are_redacted_unless_captured() -> None:
    """A value is reported only if its name is captured and not secret, and it does not look like a secret."""
    for query, shown in QUERIES:
        assert Redactor(capture_query_parameters=["page", "token", "code", "Policy"]).query(query) == shown
        assert Redactor(capture_query_parameters=["page", "token", "code", "Policy"]).query(query.decode()) == shown


@given(st.binary(max_size=3000))
@example(b"=" * 3000)
def test_any_query_keeps_its_keys_and_loses_its_values(query: bytes) -> None:
    """Keys stay in their order, no value is reported, the length is bounded."""
    shown = DEFAULT_REDACTOR.query(query)
    assert len(shown) <= MAX_QUERY_BYTES
    for part, was in zip(shown.split("&"), query.decode("latin-1").replace(";", "&").split("&"), strict=False):
        key, equals, value = part.partition("=")
        assert key in {was.partition("=")[0], "REDACTED", "REDACTED"[: len(key)]} or len(shown) == MAX_QUERY_BYTES
        assert "REDACTED".startswith(value) or not equals


def test_patterns_of_the_user() -> None:
    """Matches of `redact_patterns` are redacted; each line of a long text is cut for them."""
    redactor = Redactor(patterns=[r"EMP-\d+", "x*"])
    assert redactor.text("by EMP-1234 for xx") == "by REDACTED for REDACTED"
    long = "\n".join(["a" * 3000, "EMP-1", "b" * 3000 + "EMP-2"])
    assert redactor.text(long) == "\n".join(["a" * MAX_USER_PATTERN_LENGTH, "REDACTED", "b" * MAX_USER_PATTERN_LENGTH])
    assert redactor.path("/EMP-7") == "/REDACTED"


def test_function_of_the_user() -> None:
    """`redact` is called last. If it raises or does not return a string, the text is redacted and the error counted."""
    errors: list[tuple[str, str]] = []

    def redact(text: str) -> Any:
        if text == "boom":
            raise LookupError
        return None if text == "none" else text.replace("blue", "B")

    redactor = Redactor(function=redact, internal_errors=lambda site, exc: errors.append((site, type(exc).__name__)))
    assert redactor.text("blue password=x") == "B password=REDACTED"
    assert [redactor.text("boom"), redactor.text("none")] == ["REDACTED", "REDACTED"]
    assert errors == [("redact", "LookupError"), ("redact", "TypeError")]
    assert Redactor(function=redact).text("boom") == "REDACTED"


def test_made_from_the_settings() -> None:
    """Every redaction option of the settings is used."""
    settings = ObserveSettings(
        capture_query_parameters=("page",),
        capture_pii=True,
        redact_names=("tenant",),
        redact_patterns=("EMP",),
        redact=lambda text: text.replace("blue", "B"),
    )
    redactor = Redactor.from_settings(settings)
    assert redactor.query("page=ab&page=blue") == "page=ab&page=REDACTED"  # what the function changes is not shown
    assert redactor.address("203.0.113.7") == "203.0.113.7"
    assert redactor.text("blue") == "B"
    assert redactor.fields({"tenant": "x", "a": "EMP"}) == {"tenant": "REDACTED", "a": "REDACTED"}
