"""Every class of the error tree."""

from __future__ import annotations

from collections.abc import Iterator

from server.errors import ServerError


def all_errors(cls: type[ServerError] = ServerError) -> Iterator[type[ServerError]]:
    """The class and all below it."""
    yield cls
    for child in cls.__subclasses__():
        yield from all_errors(child)
