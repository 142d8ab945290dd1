"""Secret names: of parameters, fields, headers, form and JSON keys, and of words before `=` in a string."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Final

from fastapi_observe.redaction.cache import BoundedCache
from fastapi_observe.redaction.patterns import COUNT

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_COMPARED_LENGTH: Final = 128
"""Characters of a name that are compared."""

MAX_CACHED_NAMES: Final = 2048

MAX_PLACES: Final = 8
"""Parts before dots that are left out, one after the other, when a name is judged."""

MAX_SHORT_WORD: Final = 4

MAX_SECRET_WORD: Final = 64
"""Characters of a word that may be a secret name."""

SECRET_AFFIXES: Final = frozenset(
    """password passwd pwd passphrase passcode secret client_secret token access_token refresh_token id_token csrf
    csrftoken xsrf xsrf_token auth authorization authentication credential credentials api_key api_token x_api_key
    access_key secret_key private_key app_key application_key signing_key encryption_key session session_id sid
    phpsessid jsessionid connect_sid user_session jwt bearer assertion saml saml_response code_verifier otp totp mfa cvv
    cvc card_number iban ssn signature sig hmac mysql_pwd pgpassword passwords secrets aws_secret_access_key dsn
    connection_string consumer_key consumer_secret oauth_token webhook_secret account_key shared_access_key cred creds
    api_secret shared_secret ssh_key master_key deploy_key gpg_key pgp_key license_key storage_key auth_key client_key
    passkey credit_card debit_card mnemonic seed_phrase recovery_phrase backup_phrase secret_phrase
    database_url database_uri db_url db_uri redis_url mongo_url mongo_uri mongodb_url mongodb_uri postgres_url
    postgresql_url mysql_url amqp_url broker_url rabbitmq_url jdbc_url connection_url connection_uri conn_string
    webhook_url security_answer social_security passport_number account_number routing_number bank_account
    """.split()  # noqa: SIM905 - a list would be a page long
)
"""Secret as a whole name and as its first or last words: `user_password`, `password_hash`, `userPassword`."""

SECRET_SUFFIXES: Final = frozenset({"pass", "pin", "cookie"})
"""Secret as a whole name and as its last word: `db_pass`, but not `pass_rate`."""

SECRET_WHOLE_NAMES: Final = frozenset(
    """code sign signed pan aws_access_key_id auth_code authorization_code
    verification_code security_code recovery_code backup_code reset_code login_code pin_code otp_code sms_code
    access_code invite_code""".split()  # noqa: SIM905 - a list would be a page long
)
"""Secret as a whole name only. Inside other names these words have another meaning, as in `status_code`."""

SIGNED_URL_PARAMETERS: Final = frozenset({"policy", "keypairid", "googleaccessid"})
"""Parameters of signed URLs. They are secret in query strings only."""

NOT_SECRET: Final = frozenset({"publickey", "state", "nonce"})
"""Names that are not secret, although parts of them are in the lists above."""

METADATA_SUFFIXES: Final = frozenset(
    """at count disabled duration enabled expired expires expiry in length len limit method ms name policy provider
    required seconds size status total ttl type url used valid version""".split()  # noqa: SIM905 - a list would be a page long
)
"""Last words of names that describe a secret: `token_type`, `password_changed_at`, `session_seconds`."""

AMBIGUOUS_IN_TEXT: Final = frozenset(
    """auth authentication session sid sig mfa totp saml assertion bearer hmac credential pass pin code sign signed
    pan""".split()  # noqa: SIM905 - a list would be a page long
)
"""Names that are ordinary words before `:` or `=` in a sentence."""

SECRET_PATH_SEGMENTS: Final = frozenset(
    """password passwd passphrase secret token access_token refresh_token reset_token id_token api_key access_key
    secret_key private_key otp jwt reset_password password_reset invite_token""".split()  # noqa: SIM905 - a list would be a page long
)
"""Segments of a path that a secret follows: `/reset-password/abc`."""

PATH_ACTIONS: Final = frozenset(
    """refresh reset verify revoke new confirm login logout callback change forgot validate introspect me request send
    sent done success status info list create delete update edit settings""".split()  # noqa: SIM905 - a list would be a page long
)
"""Segments after a secret one that are actions, not secrets: `/token/refresh`."""

GLUED_SUFFIXES: Final = (
    *("password", "passwd", "passphrase", "pwd", "secret", "token", "credential"),
    *("apikey", "accesskey", "privatekey", "secretkey", "sessionid"),
)
"""Secret as the end of a word: `dbpassword`, `csrfmiddlewaretoken`."""

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS: Final = re.compile(r"[\W_]+")


def split_words(name: str) -> list[str]:
    """Return the words of a name in lower case, without trailing digits: `userPassword2`, `api-key`."""
    name = name[:MAX_COMPARED_LENGTH]
    if not (name.islower() or name.isupper()):
        name = _CAMEL.sub("_", name)
    return [word.rstrip("0123456789") or word for word in _SEPARATORS.split(name.lower()) if word]


def normalize_name(name: str) -> str:
    """Return a name as names are compared: `API-Key`, `api_key`, `api.key`, `api key` and `apiKey` are equal."""
    return "".join(split_words(name))


def _normalize_all(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(normalize_name, names)) - {""}


_AFFIXES: Final = _normalize_all(SECRET_AFFIXES)
_SUFFIXES: Final = _normalize_all(SECRET_SUFFIXES)
_WHOLE_NAMES: Final = _normalize_all(SECRET_WHOLE_NAMES)
_AMBIGUOUS: Final = _normalize_all(AMBIGUOUS_IN_TEXT)
_PATH_SEGMENTS: Final = _normalize_all(SECRET_PATH_SEGMENTS)


def _find_stems(names: Iterable[str]) -> tuple[str, ...]:
    """Return words, in lower case, of which one is in every string that contains one of these names.

    Most strings contain no stem, so that they need no search for names. The word that most names share is taken
    first. Short words that are part of many others count only before a `:` or `=`.
    """
    stems: list[str] = []
    pending = []
    for name in names:
        words = split_words(name)
        if len(words) == 1 and len(words[0]) <= MAX_SHORT_WORD and words[0] in AMBIGUOUS_IN_TEXT:
            stems += [words[0] + ":", words[0] + "="]
        elif words:
            rare = [word for word in words if word not in _COMMON_WORDS]
            pending.append(rare or words)
    while pending:
        shared = Counter(word for words in pending for word in words if len(words) == 1) or Counter(chain(*pending))
        word = max(shared, key=lambda word: (shared[word], -len(word), word))
        stems.append(word)
        pending = [words for words in pending if not any(word in other for other in words)]
    return tuple(stems)


_COMMON_WORDS: Final = frozenset({"app", "api", "code", "id", "no", "number", "reset", "uri", "url"})
_STEMS: Final = _find_stems(sorted(SECRET_AFFIXES | SECRET_SUFFIXES | SECRET_WHOLE_NAMES | set(GLUED_SUFFIXES)))


class SecretNames:
    """The built-in lists and the user's own names, `extra`, which are secret whole and as first or last words."""

    __slots__ = ("_in_text", "_path_segments", "_verdicts", "extra", "stems")

    def __init__(self, extra: Iterable[str] = ()) -> None:
        self.extra = _normalize_all(extra)
        self._verdicts: BoundedCache[str, bool] = BoundedCache(MAX_CACHED_NAMES, MAX_COMPARED_LENGTH)
        self._in_text: BoundedCache[str, bool] = BoundedCache(MAX_CACHED_NAMES, MAX_COMPARED_LENGTH)
        self.stems = _STEMS if not self.extra else (*_STEMS, *_find_stems(extra))
        self._path_segments = _PATH_SEGMENTS | self.extra

    def is_secret(self, name: str) -> bool:
        """Return whether the value of this name is secret."""
        verdict = self._verdicts.get(name)
        return self._verdicts.remember(name, self._decide(name)) if verdict is None else verdict

    def is_secret_in_text(self, name: str) -> bool:
        """Return whether the value after this word and `=` or `:` in a sentence is secret.

        Fewer names are secret here than elsewhere. The same rule holds for parameters of route templates, so that
        `/status/{code}` is an ordinary one.
        """
        verdict = self._in_text.get(name)
        return self._in_text.remember(name, self._decide_in_text(name)) if verdict is None else verdict

    def is_secret_word(self, word: str) -> bool:
        """Return whether a word is a secret name whose value may follow. Most words contain no stem."""
        lower = word.lower() if len(word) <= MAX_SECRET_WORD else ""
        return any(stem in lower for stem in self.stems) and self.is_secret_in_text(word)

    def is_secret_in_query(self, name: str, value: str = "0") -> bool:
        """Return whether the value of this query parameter is secret, even if the settings capture it.

        A number is not under a name that `is_count`.
        """
        is_secret = self.is_secret(name) and not (self.is_count(name) and COUNT.fullmatch(value))
        return is_secret or normalize_name(name) in SIGNED_URL_PARAMETERS

    def is_secret_pair(self, before: str, name: str) -> bool:
        """Return whether two words in a sentence are one secret name: `api key`, `client secrets`, `backup code`."""
        words = split_words(f"{before} {name}")
        return any(
            whole in _AFFIXES or whole in _WHOLE_NAMES or whole in self.extra
            for whole in ("".join(words), "".join(_singular(words)))
        )

    def is_count(self, name: str) -> bool:
        """Return whether a number under this name is a count: it is secret only as a plural, such as `max_tokens`."""
        words = split_words(name)
        singular = _singular(words)
        if singular == words or self._decide_words(words):
            return False
        return not any("".join(singular[-size:]) in _AFFIXES for size in range(2, len(singular) + 1))

    def hides_next_segment(self, segment: str, following: str) -> bool:
        """Return whether `following` is secret because it comes after `segment` in a path."""
        words = split_words(segment)
        if "".join(words) not in self._path_segments and not (words[-1:] == ["token"] and len(words) > 1):
            return False
        return following not in PATH_ACTIONS

    def _decide(self, name: str) -> bool:
        if self._decide_words_or_plural(split_words(name)):
            return True
        if "." not in name:
            return False
        # An attribute is named by its place: `user.password.hash` is as secret as `password.hash`, and so is
        # `db_password.hash`.
        places = [split_words(place) for place in name[:MAX_COMPARED_LENGTH].split(".", MAX_PLACES)]
        if any(self._decide_words_or_plural([*chain(*places[at:])]) for at in range(1, len(places))):
            return True
        if not METADATA_SUFFIXES.isdisjoint(places[-1][-1:]):
            return False
        # A plural before a dot is a table or a collection: `tokens.digest`.
        return any(self._decide_words(words) and "".join(words) not in _WHOLE_NAMES for words in places[:-1])

    def _decide_words_or_plural(self, words: list[str]) -> bool:
        if self._decide_words(words):
            return True
        return words[-1:] != [] and words[-1] not in METADATA_SUFFIXES and self._decide_words(_singular(words))

    def _decide_words(self, words: list[str]) -> bool:
        whole = "".join(words)
        if _starts_or_ends_with(words, self.extra, self.extra):
            return True
        if not words or whole in NOT_SECRET:
            return False
        if whole in _WHOLE_NAMES or whole in _SUFFIXES or whole in _AFFIXES:
            return True
        if words[-1] in METADATA_SUFFIXES:
            return False
        is_glued = words[0].endswith(GLUED_SUFFIXES) or words[-1].endswith(GLUED_SUFFIXES)
        return is_glued or _starts_or_ends_with(words, _AFFIXES, _AFFIXES | _SUFFIXES)

    def _decide_in_text(self, name: str) -> bool:
        words = split_words(name)
        if _starts_or_ends_with(words, self.extra, self.extra):
            return True
        whole = "".join(words)
        is_plural = whole.removesuffix("s") in _AMBIGUOUS and not self._decide_words(words)
        if whole in _AMBIGUOUS or is_plural or (words[-1:] == ["tokens"] and self.is_count(name)):
            return False
        return self._decide(name)


def _singular(words: list[str]) -> list[str]:
    """Return words with the last one in the singular, as far as the lists are concerned: `api_keys`, `codes`."""
    if words and words[-1].endswith("s") and not words[-1].endswith("ss"):
        return [*words[:-1], words[-1][:-1]]
    return words


def _starts_or_ends_with(words: list[str], first: frozenset[str], last: frozenset[str]) -> bool:
    whole, at = "".join(words), 0
    for word in words:  # slices of one string: joining words again and again takes the square of the time
        if whole[at:] in last:
            return True
        at += len(word)
        if whole[:at] in first:
            return True
    return False
