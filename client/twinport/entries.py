"""What the server says about files, as the library hands it out; and names, as the library takes them."""

from __future__ import annotations

from dataclasses import dataclass

from twinport_protocol.errors import ProtocolError
from twinport_protocol.messages import Reply
from twinport_protocol.names import parse_name, parse_prefix
from twinport_protocol.numbers import parse_signed, parse_size

from .errors import ServerProtocolError, UsageError


@dataclass(frozen=True)
class RemoteEntry:
    """A file (``kind`` "f") or directory ("d") on the server. ``root`` is None where the server would have to hash."""

    name: str
    kind: str
    size: int
    mtime_ns: int
    executable: bool = False
    root: bytes | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == "d"

    @property
    def key(self) -> str:
        """What listings are ordered by."""
        return self.name + "/" if self.is_directory else self.name

    def is_same_as(self, other: RemoteEntry | None) -> bool:
        """Whether ``other`` is this one under another name, as far as can be told without its bytes."""
        if other is None or self.is_directory or other.is_directory:
            return other is not None and self.kind == other.kind
        return (self.size, self.mtime_ns, self.executable) == (other.size, other.mtime_ns, other.executable) and (
            self.root is None or other.root is None or self.root == other.root
        )


def parse_entry(name: str, reply: Reply) -> RemoteEntry:
    """The entry that a reply describes. ``ServerProtocolError``."""
    options = reply.options
    try:
        return RemoteEntry(
            name,
            options["kind"],
            parse_size(options["size"].encode()),
            parse_signed(options["mtime"].encode()),
            options.get("exec") == "1",
            bytes.fromhex(options["root"]) if "root" in options else None,
        )
    except (ProtocolError, KeyError, ValueError) as error:
        raise ServerProtocolError(f"the server's answer makes no sense ({error})") from None


def parse_size_and_root(reply: Reply) -> tuple[int, bytes]:
    """What DOWNLOAD answers. ``ServerProtocolError``."""
    try:
        return parse_size(reply.options["size"].encode()), bytes.fromhex(reply.options["root"])
    except (ProtocolError, KeyError, ValueError) as error:
        raise ServerProtocolError(f"the server's answer makes no sense ({error})") from None


def checked_name(name: str) -> str:
    """A remote name as the user wrote it. ``UsageError``."""
    try:
        return parse_name(name)
    except ProtocolError as error:
        raise UsageError(f"{name!r}: {error.code.text} [{error.code.value}]", error.code.value) from None


def checked_prefix(prefix: str) -> str:
    """A remote directory as the user wrote it, "" for all. ``UsageError``."""
    try:
        return parse_prefix(prefix)
    except ProtocolError as error:
        raise UsageError(f"{prefix!r}: {error.code.text} [{error.code.value}]", error.code.value) from None
