"""Strict numbers: one spelling each, judged on bytes.

Python's ``int()`` also takes ``+5``, ``1_0``, `` 5`` and ``１２``; a wire that takes them has two spellings of one
request, and two programs that disagree about it.
"""

from __future__ import annotations

import re

from .errors import ErrorCode, RemoteProtocolError

MAX_SIZE = 2**63 - 1
_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,18}")


def parse_size(word: bytes, *, maximum: int = MAX_SIZE) -> int:
    """A size or count in bytes, ``0|[1-9][0-9]*`` within 0…``maximum``.

    Raises ``RemoteProtocolError(InvalidSize)`` for any other spelling and for more than ``maximum``.
    """
    if not _DECIMAL.fullmatch(word):
        raise RemoteProtocolError(ErrorCode.INVALID_SIZE)
    number = int(word)
    if number > maximum:
        raise RemoteProtocolError(ErrorCode.INVALID_SIZE)
    return number


def parse_signed(word: bytes) -> int:
    """A signed 64-bit number such as an mtime in nanoseconds: an optional ``-`` and a size."""
    if word[:1] == b"-":
        number = -parse_size(word[1:])
        if number == 0:
            raise RemoteProtocolError(ErrorCode.INVALID_SIZE)
        return number
    return parse_size(word)
