"""`Renamed`: a removed name whose use raises an error with the new name."""

from __future__ import annotations

from typing import NoReturn


class Renamed:
    """Class attribute in place of a renamed method. Reading it raises `AttributeError` with the new name."""

    def __init__(self, new_name: str) -> None:
        self._new_name = new_name
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__}.{self._name} was renamed to {self._new_name}")
