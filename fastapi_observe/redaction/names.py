"""Which names stand for secrets: of parameters, fields, headers, form and JSON keys, words before `=` in a text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_NAME_LENGTH: Final = 128
"""Characters of a name that are looked at."""

MAX_CACHED_NAMES: Final = 2048
"""Names whose answer is remembered; then all are worked out anew."""

SECRET_AFFIXES: Final = frozenset(
    """password passwd pwd passphrase passcode secret client_secret token access_token refresh_token id_token csrf
    csrftoken xsrf xsrf_token auth authorization authentication credential credentials api_key api_token x_api_key
    access_key secret_key private_key app_key application_key signing_key encryption_key session session_id sid
    phpsessid jsessionid connect_sid user_session jwt bearer assertion saml saml_response code_verifier otp totp mfa cvv
    cvc card_number iban ssn signature sig hmac mysql_pwd pgpassword passwords secrets aws_secret_access_key dsn
    connection_string consumer_key consumer_secret oauth_token webhook_secret account_key
    shared_access_key""".split()  # noqa: SIM905 - a list would be a page long
)
"""Secret as a whole name and as its first or last words: `user_password`, `password_hash`, `userPassword`."""

SECRET_SUFFIXES: Final = frozenset({"pass", "pin", "cookie"})
"""Secret as a whole name and as its last word: `db_pass`, but not `pass_rate`."""

SECRET_WHOLE_NAMES: Final = frozenset(
    """code sign signed pan aws_access_key_id auth_code authorization_code
    verification_code security_code recovery_code backup_code reset_code login_code pin_code otp_code sms_code
    access_code invite_code""".split()  # noqa: SIM905 - a list would be a page long
)
"""Secret as a whole name only: words that elsewhere mean something else, as in `status_code`."""

SIGNED_URL_PARAMETERS: Final = frozenset({"policy", "keypairid", "googleaccessid"})
"""Parameters of signed URLs that are never shown; elsewhere these names are not secret."""

NOT_SECRET: Final = frozenset({"publickey", "state", "nonce"})
"""Not secret, though parts of them may look so."""

METADATA_SUFFIXES: Final = frozenset(
    """at count disabled duration enabled expired expires expiry in length len limit method ms name policy provider
    required seconds size status total ttl type url used valid version""".split()  # noqa: SIM905 - a list would be a page long
)
"""Last words of names that say something about a secret: `token_type`, `password_changed_at`, `session_seconds`."""

AMBIGUOUS_IN_TEXT: Final = frozenset(
    """auth authentication session sid sig mfa totp saml assertion bearer hmac credential pass pin code sign signed
    pan""".split()  # noqa: SIM905 - a list would be a page long
)
"""Names that mean something else too often when they stand before `:` or `=` in a sentence."""

SECRET_PATH_SEGMENTS: Final = frozenset(
    """password passwd passphrase secret token access_token refresh_token reset_token id_token api_key access_key
    secret_key private_key otp jwt reset_password password_reset invite_token""".split()  # noqa: SIM905 - a list would be a page long
)
"""Segments of a path after which a secret stands: `/reset-password/abc`."""

PATH_ACTIONS: Final = frozenset(
    """refresh reset verify revoke new confirm login logout callback change forgot validate introspect me request send
    sent done success status info list create delete update edit settings""".split()  # noqa: SIM905 - a list would be a page long
)
"""What stands after such a segment and is no secret: `/token/refresh`."""

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD: Final = re.compile(r"[\W_]+")


def split_words(name: str) -> list[str]:
    """Return the words of a name in lower case, without the digits that they end in: `userPassword2`, `api-key`."""
    name = name[:MAX_NAME_LENGTH]
    if not (name.islower() or name.isupper()):
        name = _CAMEL.sub("_", name)
    return [word.rstrip("0123456789") or word for word in _NO_WORD.split(name.lower()) if word]


def normalize_name(name: str) -> str:
    """Return a name as names are compared: `API-Key`, `api_key`, `api.key`, `api key` and `apiKey` are one."""
    return "".join(split_words(name))


def _all(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(normalize_name, names)) - {""}


_AFFIXES: Final = _all(SECRET_AFFIXES)
_SUFFIXES: Final = _all(SECRET_SUFFIXES)
_ALONE: Final = _all(SECRET_WHOLE_NAMES)
_UNSURE: Final = _all(AMBIGUOUS_IN_TEXT)
_IN_PATHS: Final = _all(SECRET_PATH_SEGMENTS)


class SecretNames:
    """The names of the list, with `more` of the user's: these are secret whole and as first or last words."""

    __slots__ = ("_anywhere", "_known", "_known_in_text", "more", "stems")

    def __init__(self, more: Iterable[str] = ()) -> None:
        self.more = _all(more)
        self._known: dict[str, bool] = {}
        self._known_in_text: dict[str, bool] = {}
        names = [*((SECRET_AFFIXES | SECRET_SUFFIXES | SECRET_WHOLE_NAMES) - AMBIGUOUS_IN_TEXT), *more]
        runs = sorted({max(split_words(name), key=len) for name in names if split_words(name)}, key=len)
        stems: list[str] = []
        for run in runs:
            if not any(stem in run for stem in stems):
                stems.append(run)
        self.stems = tuple(stems)
        self._anywhere = _IN_PATHS | self.more

    def hides(self, name: str) -> bool:
        """Tell whether what stands under this name is secret."""
        return _remembered(self._known, name, self._judge)

    def hides_in_text(self, name: str) -> bool:
        """Tell whether what follows this word and `=` or `:` in a sentence is secret: fewer words than elsewhere.

        So it is with the parameters of paths: `/status/{code}` is an ordinary one.
        """
        return _remembered(self._known_in_text, name, self._judge_in_text)

    def hides_in_query(self, name: str) -> bool:
        """Tell whether the value of this parameter of a query is secret, even if it is allowed."""
        return self.hides(name) or normalize_name(name) in SIGNED_URL_PARAMETERS

    def is_secret_pair(self, before: str, name: str) -> bool:
        """Tell whether two words in a sentence are one secret name: `api key`, `client secret`."""
        whole = normalize_name(f"{before} {name}")
        return whole in _AFFIXES or whole in self.more

    def hides_next_segment(self, segment: str, after: str) -> bool:
        """Tell whether a segment of a path is secret because it stands after another."""
        words = split_words(segment)
        if "".join(words) not in self._anywhere and not (words[-1:] == ["token"] and len(words) > 1):
            return False
        return after not in PATH_ACTIONS

    def _judge(self, name: str) -> bool:
        words = split_words(name)
        whole = "".join(words)
        if self._has(words, self.more, self.more):
            return True
        if whole in NOT_SECRET:
            return False
        if whole in _ALONE or whole in _SUFFIXES or whole in _AFFIXES:
            return True
        return (
            words[-1:] != [] and words[-1] not in METADATA_SUFFIXES and self._has(words, _AFFIXES, _AFFIXES | _SUFFIXES)
        )

    def _judge_in_text(self, name: str) -> bool:
        words = split_words(name)
        if self._has(words, self.more, self.more):
            return True
        return "".join(words) not in _UNSURE and words[-1:] != ["tokens"] and self._judge(name)

    @staticmethod
    def _has(words: list[str], first: frozenset[str], last: frozenset[str]) -> bool:
        parts = range(1, len(words) + 1)
        return any("".join(words[:at]) in first or "".join(words[-at:]) in last for at in parts)


def _remembered(known: dict[str, bool], name: str, judge: Callable[[str], bool]) -> bool:
    answer = known.get(name)
    if answer is None:
        answer = judge(name)
        if len(name) <= MAX_NAME_LENGTH:
            if len(known) >= MAX_CACHED_NAMES:
                known.clear()
            known[name] = answer
    return answer
