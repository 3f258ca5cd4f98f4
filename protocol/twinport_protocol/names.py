"""Remote names: the one door through which a path from the wire enters the program.

A remote name is a relative path of at most 900 bytes of UTF-8: components joined by ``/``, none of them empty, ``.``
or ``..``, none above 255 bytes, no control characters. What passes :func:`parse_name` is the *only* spelling of that
file: no Unicode normalisation, no case folding, no ``~`` or ``%`` expansion happens to it anywhere, before or after.
In the lines of twinport/2, space, ``%``, ``=`` and control bytes are percent-encoded (RFC 3986 §2.1) so that a name is
one word.
"""

from __future__ import annotations

import re
from typing import NewType

from .errors import ErrorCode, RemoteProtocolError

RemoteName = NewType("RemoteName", str)

MAX_NAME_BYTES = 900
MAX_COMPONENT_BYTES = 255
RESERVED = ".twinport"
"""The first component of the server's own files, in any letter case; no remote name begins with it."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_BAD_COMPONENT = re.compile(r"(?:^|/)(?:\.{0,2}| +)(?:/|$)")
_PLAIN = re.compile(r"[0-9A-Za-z_\-][0-9A-Za-z_\-.]{0,200}")
_ENCODE = re.compile(r"[\x00- %=\x7f-\x9f]")
_STRAY = re.compile("%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_WINDOWS_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?")
_WINDOWS_FORBIDDEN = re.compile(r'[<>:"\\|?*]')


def parse_name(text: str) -> RemoteName:
    """The remote name that ``text`` spells, or ``RemoteProtocolError(InvalidName)``."""
    if _PLAIN.fullmatch(text):  # the common case, at the price of one match
        return RemoteName(text)
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise RemoteProtocolError(ErrorCode.INVALID_ENCODING) from None
    if len(raw) > MAX_NAME_BYTES or _CONTROL.search(text) or _BAD_COMPONENT.search(text):
        raise RemoteProtocolError(ErrorCode.INVALID_NAME)
    # The first component only: a file called ".twinport" deeper in the tree is nobody's business. In any case, because
    # some file systems know only one.
    if text[0] == "." and text.partition("/")[0].casefold() == RESERVED:
        raise RemoteProtocolError(ErrorCode.INVALID_NAME)
    if len(raw) > MAX_COMPONENT_BYTES and any(len(part) > MAX_COMPONENT_BYTES for part in raw.split(b"/")):
        raise RemoteProtocolError(ErrorCode.INVALID_NAME)
    return RemoteName(text)


def parse_name_bytes(raw: bytes) -> RemoteName:
    """As :func:`parse_name`, of bytes that must be strict UTF-8 (``InvalidEncoding`` otherwise)."""
    try:
        return parse_name(raw.decode("utf-8", "strict"))
    except UnicodeDecodeError:
        raise RemoteProtocolError(ErrorCode.INVALID_ENCODING) from None


def parse_prefix(text: str) -> str:
    """A directory prefix for listings: empty for everything, else a remote name; one trailing ``/`` is dropped."""
    return "" if text in ("", "/") else parse_name(text[:-1] if text.endswith("/") else text)


def is_portable(name: str) -> bool:
    """Whether every component can also exist on Windows.

    No device names, none of ``<>:"\\|?*``, no dot at the end, no space at either end.
    """
    return not any(
        part[-1:] in (".", " ") or part[:1] == " " or _WINDOWS_DEVICE.fullmatch(part) or _WINDOWS_FORBIDDEN.search(part)
        for part in name.split("/")
    )


def quote(text: str) -> str:
    """``text`` as one word of a twinport/2 line."""
    if text.isprintable() and not (" " in text or "%" in text or "=" in text):
        return text  # nearly always, and several times faster than a search
    return _ENCODE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def unquote(word: str) -> str:
    """The text of one word; a stray ``%`` is ``BadRequest``, bytes that are not UTF-8 are ``InvalidEncoding``."""
    if "%" not in word:
        return word
    if _STRAY.search(word):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST)
    try:
        raw = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), word.encode())
        return raw.decode("utf-8", "strict")
    except UnicodeError:
        raise RemoteProtocolError(ErrorCode.INVALID_ENCODING) from None
