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
            assert DEFAULT_REDACTOR.is_secret_name(spelled), spelled


NAMES_WITH_SECRET_WORDS = """user_password userPassword password2 new-password2 smtp.pass card_pin X-Api-Key
    x-goog-iam-authorization-token AWSAccessKeyId sessionID token_value reset_token connect.sid user[password] DB_DSN
    oauth2_token""".split()  # noqa: SIM905 - a list would be a page long


def test_names_that_start_or_end_with_a_secret_name() -> None:
    """A name whose first or last words are a secret name is secret."""
    for name in NAMES_WITH_SECRET_WORDS:
        assert DEFAULT_REDACTOR.is_secret_name(name)


ORDINARY_NAMES = """public_key state nonce status_code country_code token_type token_count password_changed_at pass_rate
    session_seconds author authority passenger keyboard compass tokens signal design shipping pinned_at max_tokens
    span_id code_name monkey key""".split()  # noqa: SIM905 - a list would be a page long


def test_ordinary_names() -> None:
    """A name that only resembles a secret one, or describes a secret, is not secret."""
    for name in ORDINARY_NAMES:
        assert not DEFAULT_REDACTOR.is_secret_name(name)
        assert not DEFAULT_REDACTOR.is_secret_name("")


def test_names_of_the_user_apply_everywhere() -> None:
    """`redact_names` applies to fields, texts, paths, queries and headers, and wins over the built-in exceptions."""
    redactor = Redactor(names=["Tenant Name", "state", "token_count", "--"])
    for name in ("tenant_name", "tenantName", "old-tenant-name", "state", "tokenCount"):
        assert redactor.is_secret_name(name)
    assert redactor.text("the tenant name: acme, state=7") == "the tenant name: REDACTED state=REDACTED"
    assert redactor.path("/tenant_name/acme/x") == "/tenant_name/REDACTED/x"
    assert redactor.query(b"state=1") == "state=REDACTED"
    assert redactor.header("X-Tenant-Name", "acme") == "REDACTED"


def test_remembered_names_are_bounded() -> None:
    """The number of remembered names is bounded, and long names are not remembered."""
    names = SecretNames()
    for number in range(MAX_CACHED_NAMES + 10):
        assert not names.is_secret(f"name_{number}")
    names.is_secret("x" * 1000)
    (remembered,) = [each for each in gc.get_referents(names) if isinstance(each, dict) and each]
    assert len(remembered) <= MAX_CACHED_NAMES
    assert max(map(len, remembered)) < 1000
