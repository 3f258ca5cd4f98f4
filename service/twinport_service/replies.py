"""The forms that replies and their options take, and the words that commands bring."""

from __future__ import annotations

from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.messages import Command, Reply, ReplyKind

from .storage.contract import Entry, Published
from .usage import Usage


def refuse(command: Command, error: Refusal | ProtocolError) -> Reply:
    """The ``ERROR`` reply to a command."""
    retry = error.retry_seconds if isinstance(error, Refusal) else None
    return Reply(command.id, ReplyKind.ERROR, code=error.code, retry_seconds=retry)


def parse_hex(word: str | None, size: int) -> bytes:
    """``size`` bytes written in hexadecimal. ``BadRequest`` for anything else, and for none."""
    # bytes.fromhex alone would also take white space.
    if word is None or len(word) != 2 * size or not word.isascii() or not word.isalnum():
        raise Refusal(ErrorCode.BAD_REQUEST, "an id or digest of the wrong form")
    try:
        return bytes.fromhex(word)
    except ValueError:
        raise Refusal(ErrorCode.BAD_REQUEST, "an id or digest of the wrong form") from None


def describe_usage(user: str, usage: Usage) -> dict[str, str]:
    """The options of a QUOTA reply; a bound that is missing is none."""
    options = {
        "user": user,
        "bytes": str(usage.stored.size_bytes),
        "files": str(usage.stored.files),
        "reserved-bytes": str(usage.reserved_bytes),
        "open-uploads": str(usage.open_uploads),
    }
    if usage.quota.max_bytes is not None:
        options["max-bytes"] = str(usage.quota.max_bytes)
    if usage.quota.max_files is not None:
        options["max-files"] = str(usage.quota.max_files)
    return options


def describe_published(published: Published) -> dict[str, str]:
    """The options of a DONE that tells what stands under the name now."""
    return {
        "upload": published.upload_id.hex(),
        "root": published.root.hex(),
        "size": str(published.size),
        "mtime": str(published.mtime_ns),
    }


def describe_entry(entry: Entry) -> dict[str, str]:
    """The options of an ENTRY, and of the reply to STAT."""
    options = {
        "kind": entry.kind,
        "size": str(entry.size),
        "mtime": str(entry.mtime_ns),
        "exec": "1" if entry.executable else "0",
    }
    if entry.root is not None:
        options["root"] = entry.root.hex()
    return options
