"""Which names are secret, in which spellings."""

from __future__ import annotations

import gc

from fastapi_observe.redaction.names import (
    MAX_CACHED_NAMES,
    SECRET_AFFIXES,
    SECRET_SUFFIXES,
    SECRET_WHOLE_NAMES,
    SecretNames,
)
from fastapi_observe.redaction.redactor import (
    DEFAULT_REDACTOR,
    Redactor,
)

SECRET_NAMES = sorted(SECRET_AFFIXES | SECRET_SUFFIXES | SECRET_WHOLE_NAMES)


def test_names_match_in_every_spelling() -> None:
    """Case does not matter, nor whether words are separated by `-`, `_`, `.`, a blank or a capital."""
    for name in SECRET_NAMES:
        words = name.split("_")
        camel = words[0] + "".join(word.title() for word in words[1:])
        for spelled in (name, name.upper(), *(name.replace("_", mark) for mark in "-. "), camel, f"{name}2"):
            assert SecretNames().is_secret(spelled), spelled


NAMES_WITH_SECRET_WORDS = """user_password userPassword password2 new-password2 smtp.pass card_pin X-Api-Key
    x-goog-iam-authorization-token AWSAccessKeyId sessionID token_value reset_token connect.sid user[password] DB_DSN
    oauth2_token""".split()  # noqa: SIM905 - a list would be a page long


def test_names_that_start_or_end_with_a_secret_name() -> None:
    """A name whose first or last words are a secret name is secret."""
    for name in NAMES_WITH_SECRET_WORDS:
        assert SecretNames().is_secret(name)


def test_names_with_places() -> None:
    """A dotted name is also judged without its first parts, of which there may be many."""
    for name in (
        "user.password.hash",
        "app.login.api_key.value",
        "a.b.c.token.raw",
        "dbPassword.value",
        "password" + ".x" * 5000,
    ):
        assert SecretNames().is_secret(name), name
    for name in (
        "user.password.length",
        "dbPassword.changed_at",
        "code.function.name",
        "tokens.digest",
        "db.client.connection.count",
        "x." * 5000 + "password",
    ):
        assert not SecretNames().is_secret(name), name


ORDINARY_NAMES = """public_key state nonce status_code country_code token_type token_count password_changed_at pass_rate
    session_seconds author authority passenger keyboard compass signal design shipping pinned_at
    span_id code_name monkey key""".split()  # noqa: SIM905 - a list would be a page long


def test_ordinary_names() -> None:
    """A name that only resembles a secret one, or describes a secret, is not secret."""
    for name in ORDINARY_NAMES:
        assert not SecretNames().is_secret(name)
        assert not SecretNames().is_secret("")


RELATIVES = """creds apisecret api-secret sharedsecret ssh_key masterKey credit_card mnemonic seed_phrase DATABASE_URL
    passwords api_keys accessTokens session_ids client_secrets backup_codes private_keys dbpassword userpasswd
    csrfmiddlewaretoken dbpasswords MYSQL_PWD mongodb_uri""".split()  # noqa: SIM905 - as above


def test_plurals_and_relatives() -> None:
    """Plurals of listed names, names without separators and close relatives are secret too."""
    for name in RELATIVES:
        assert SecretNames().is_secret(name), name
        assert DEFAULT_REDACTOR.fields({name: "hunter2"}) == {name: "REDACTED"}, name
        assert DEFAULT_REDACTOR.text(f"{name}=hunter2\nx") == f"{name}=REDACTED\nx", name


def test_numbers_under_plural_names_are_counts() -> None:
    """The number of tokens or sessions is not a secret; the tokens and the sessions are."""
    counts = {"max_tokens": 512, "tokens": 7, "active_sessions": 3.5}
    assert DEFAULT_REDACTOR.fields(counts) is counts
    assert DEFAULT_REDACTOR.fields({"tokens": ["abc"], "sessions": "abc"}) == {
        "tokens": "REDACTED",
        "sessions": "REDACTED",
    }
    text = '{"max_tokens": 512, "active_sessions": 3} max_tokens=512 active_sessions=3'
    assert DEFAULT_REDACTOR.text(text) == text
    assert DEFAULT_REDACTOR.text('{"tokens": "abc"}') == '{"tokens": "REDACTED"}'
    assert DEFAULT_REDACTOR.fields({"access_tokens": 1, "passwords": 1}) == {
        "access_tokens": "REDACTED",
        "passwords": "REDACTED",
    }
    assert (
        Redactor(capture_query_parameters=["max_tokens"]).query("max_tokens=5&tokens=5")
        == "max_tokens=5&tokens=REDACTED"
    )
    redactor = Redactor(capture_query_parameters=["*"])
    assert redactor.query("max_tokens=5&tokens=-5&sessions=2.5") == "max_tokens=5&tokens=-5&sessions=2.5"
    for value in ("abc", "5a", "5,6", "1234567890123"):  # after a number, whose name must not be remembered as plain
        assert redactor.query(f"tokens={value}&codes={value}") == "tokens=REDACTED&codes=REDACTED"
    assert redactor.query("tokens=5") == "tokens=5"
    assert DEFAULT_REDACTOR.text("tokens=ab12cd34 tokens: left") == "tokens=REDACTED tokens: left"


def test_names_of_the_user_apply_everywhere() -> None:
    """`redact_names` applies to fields, texts, paths, queries and headers, and wins over the built-in exceptions."""
    extra = ["Tenant Name", "state", "token_count", "--"]
    redactor, names = Redactor(names=extra), SecretNames(extra)
    for name in ("tenant_name", "tenantName", "old-tenant-name", "state", "tokenCount"):
        assert names.is_secret(name)
    assert redactor.text("the tenant name: acme, state=7") == "the tenant name: REDACTED state=REDACTED"
    assert redactor.path("/tenant_name/acme/x") == "/tenant_name/REDACTED/x"
    assert redactor.query(b"state=1") == "state=REDACTED"
    assert redactor.header("X-Tenant-Name", "acme") == "REDACTED"


def test_a_code_in_a_route_is_secret_only_if_the_user_says_so() -> None:
    """`/status/{code}` has an ordinary parameter, `/reset/{reset_code}` a secret one; `redact_names` adds names."""
    for extra, name, shown in (
        ((), "code", "/reset/k7"),
        (("code",), "code", "/reset/REDACTED"),
        ((), "reset_code", "/reset/REDACTED"),
    ):
        assert Redactor(names=extra).route_path("/reset/k7", f"/reset/{{{name}}}") == shown


def test_remembered_names_are_bounded() -> None:
    """The number of remembered names is bounded, and long names are not remembered."""
    names = SecretNames()
    for number in range(MAX_CACHED_NAMES + 10):
        assert not names.is_secret(f"name_{number}")
    names.is_secret("x" * 1000)
    (remembered,) = [each for each in gc.get_referents(names) if isinstance(each, dict) and each]
    assert len(remembered) <= MAX_CACHED_NAMES
    assert max(map(len, remembered)) < 1000
