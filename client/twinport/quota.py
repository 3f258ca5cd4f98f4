"""What a user has stored and may store."""

from __future__ import annotations

from dataclasses import dataclass

from twinport_protocol.errors import ErrorCode, ProtocolError, RemoteProtocolError
from twinport_protocol.messages import Reply
from twinport_protocol.numbers import parse_size

from .errors import nonsense
from .session import user_in


@dataclass(frozen=True)
class Quota:
    """Bytes and files stored; what unfinished uploads hold besides; the most that both together may be, None for no
    bound."""

    user: str
    stored_bytes: int
    files: int
    reserved_bytes: int
    open_uploads: int
    max_bytes: int | None
    max_files: int | None

    @property
    def free_bytes(self) -> int | None:
        """What may still be sent, None for no bound."""
        if self.max_bytes is None:
            return None
        return max(0, self.max_bytes - self.stored_bytes - self.reserved_bytes)


def parse_quota(reply: Reply) -> Quota:
    """The quota out of the answer to QUOTA. ``ServerProtocolError``."""

    def number(key: str) -> int | None:
        return parse_size(reply.options[key].encode()) if key in reply.options else None

    try:
        stored, files = number("bytes"), number("files")
        if stored is None or files is None:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a quota without numbers")
        return Quota(
            user=user_in(reply.options) or "",
            stored_bytes=stored,
            files=files,
            reserved_bytes=number("reserved-bytes") or 0,
            open_uploads=number("open-uploads") or 0,
            max_bytes=number("max-bytes"),
            max_files=number("max-files"),
        )
    except ProtocolError as error:
        raise nonsense(error) from None
