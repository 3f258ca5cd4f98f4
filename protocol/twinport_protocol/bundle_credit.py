"""What bundles take of a channel's credit, and which answers fit them. Pure; :mod:`channel` owns the credit itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .bundles import FetchedFile, decode_fetched, decode_statuses
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import LAST, FrameType, Header, Message


class BundleAnswer(NamedTuple):
    """Event: an answer to a bundle, or a part of it. ``statuses`` of the files of a PUT_MANY; ``files`` of a GET_MANY,
    whose bytes are not compared with their digests yet."""

    header: Header
    statuses: list[int]
    files: list[FetchedFile]

    @property
    def ends(self) -> bool:
        """Whether the bundle is answered with this."""
        return self.header.type == FrameType.ACKS or bool(self.header.flags & LAST)


def credit_of(header: Header) -> int:
    """What a PUT_MANY or GET_MANY takes of the credit: the bytes that it brings, and those that it asks for at most,
    which a GET_MANY has in the field ``offset``. Both are held or made until it is answered."""
    return header.length + header.offset


@dataclass
class SentBundle:
    """The client's view of a bundle on its way: how many records are to come, and how many bytes of files at most."""

    header: Header
    records: int
    received: int = 0

    @property
    def credit(self) -> int:
        """What it has taken, and gives back with its end."""
        return credit_of(self.header)

    def settle(self, message: Message) -> BundleAnswer:
        """The answer in an ACKS or FILES frame. ``RemoteProtocolError`` if it does not fit what was sent."""
        header = message.header
        is_upload = self.header.type == FrameType.PUT_MANY
        if is_upload is not (header.type == FrameType.ACKS):
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "an answer to another kind of bundle")
        if is_upload:
            statuses = decode_statuses(message.body)
            if len(statuses) != self.records:
                raise RemoteProtocolError(ErrorCode.BAD_STATE, "other statuses than files are due")
            return BundleAnswer(header, statuses, [])
        answer = BundleAnswer(header, [], decode_fetched(message.body))
        self.records -= len(answer.files)
        self.received += sum(len(file.data) for file in answer.files)
        if self.received > self.header.offset or self.records < 0 or (self.records == 0) is not answer.ends:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "other files than were asked for")
        if not answer.files:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "files that are none")
        return answer


class SentFiles:
    """The server's view of the answers to GET_MANYs: how many bytes of files each has had."""

    def __init__(self) -> None:
        self._given: dict[tuple[int, int], int] = {}

    def give(self, get: Header, file_bytes: int, *, last: bool) -> tuple[int, int]:
        """So many bytes of files go out in answer to ``get``: how many went before, and the credit that they give back.
        ``LocalProtocolError`` for more than were asked for."""
        key = get.attachment, get.segment
        given = self._given.pop(key, 0)
        if file_bytes > get.offset - given:
            raise LocalProtocolError(ErrorCode.BAD_STATE, "more bytes of files than were asked for")
        if last:
            return given, credit_of(get) - given
        self._given[key] = given + file_bytes
        return given, file_bytes
