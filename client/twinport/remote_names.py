"""What can be done to the files on a server by their names: one connection, one command after the other.

The half of a :class:`twinport.Client` that moves no bytes. A command is repeated over a new connection when the old one
is lost; those that change something find out whether they already have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.segments import Manifest
from twinport_protocol.tickets import decode_ticket

from .backoff import Backoff
from .connector import Connector
from .entries import RemoteEntry, checked_name, checked_prefix, parse_entry, parse_size_and_root
from .errors import (
    BusyError,
    DeniedError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    ServerProtocolError,
    TwinportError,
    UsageError,
    local_failure,
    refusal,
)
from .session import Identity, Session

if TYPE_CHECKING:
    from twinport_protocol.control import Limits

    from .addresses import Address
    from .quota import Quota

PAGE_ENTRIES = 5000
FIRST_PAGE_ENTRIES = 64
"""About what a connection carries in its first round trip."""
PAGE_GROWTH = 4
_Tries = list[int]
_Replies = list[Reply]  # inside the class, list is a method


class RemoteNames:
    """See the module. Opens a session with ``connector``, and others in its place for as long as ``patience_seconds``
    while nothing else is to be had."""

    def __init__(self, connector: Connector, patience_seconds: float) -> None:
        self._connector = connector
        self._patience_seconds = patience_seconds
        self._session: Session | None = connector.open()

    def close(self) -> None:
        """Say goodbye and close the connection. Harmless when repeated."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    # names -----------------------------------------------------------------------------------------------------------

    def list(self, prefix: str = "", *, recursive: bool = False) -> Iterator[RemoteEntry]:
        """What is directly below ``prefix``, in the order of the bytes of the names; with ``recursive`` all files and
        the empty directories. A prefix that is a file lists that file. ``NotFoundError``."""
        return self._listing(checked_prefix(prefix), recursive)

    def _feed_listing(self, prefix: str, recursive: bool) -> Iterator[RemoteEntry]:
        """The same for a transfer, which begins with what is on the first page: so that one is short."""
        return self._listing(prefix, recursive, FIRST_PAGE_ENTRIES)

    def _listing(self, prefix: str, recursive: bool, page_entries: int = PAGE_ENTRIES) -> Iterator[RemoteEntry]:
        after = ""
        words = (prefix,) if prefix else ()
        while True:
            options = {"limit": str(page_entries)}
            page_entries = min(PAGE_GROWTH * page_entries, PAGE_ENTRIES)
            if not recursive:
                options["depth"] = "1"
            if after:
                options["after"] = after
            replies = self._call(f"cannot list {prefix or 'the server'}", Verb.LIST, words, options)
            for reply in replies[:-1]:
                entry = parse_entry(reply.words[0] if reply.words else "", reply)
                if entry.key.encode("utf-8", "surrogateescape") <= after.encode("utf-8", "surrogateescape"):
                    raise ServerProtocolError("the server's listing runs in circles")
                after = entry.key
                yield entry
            if replies[-1].options.get("more") != "1" or len(replies) == 1:
                return

    def stat(self, name: str) -> RemoteEntry:
        """What ``name`` is. ``NotFoundError``."""
        return parse_entry(name, self._call(f"no information on {name}", Verb.STAT, (checked_name(name),))[-1])

    def delete(self, name: str, *, recursive: bool = False, if_match: bytes | None = None) -> int:
        """Remove a file or an empty directory; with ``recursive`` a directory and all in it, the number of entries
        removed is returned. ``if_match`` removes the file only if it has that root. ``NotFoundError``,
        ``ConflictError``."""
        options = {"if-match": if_match.hex()} if if_match is not None else {}
        if not recursive:
            self._delete_one(checked_name(name), options)
            return 1
        from .removal import delete_tree  # noqa: PLC0415  # rarely needed

        try:
            return delete_tree(self.list, self._delete_one, checked_name(name))
        except NotFoundError as error:
            raise NotFoundError(error.message.replace("cannot list", "cannot remove", 1), error.code) from None

    def delete_files(self, names: Sequence[str]) -> int:
        """Remove many files, hundreds of commands under way at once; how many were there. What the server refuses is
        left. ``NetworkError`` when the connection is lost: nothing is tried again."""
        from .removal import ask_many  # noqa: PLC0415  # as in delete

        return ask_many(self._connected().link, Verb.DELETE, [checked_name(name) for name in names])

    def abandon(self, upload_ids: Sequence[str]) -> None:
        """Give up uploads that were interrupted, by the ids that :attr:`new_upload_id` gave: otherwise they are kept to
        be resumed, and hold room. Harmless for those that are finished. ``NetworkError`` as in :meth:`delete_files`."""
        from .removal import ask_many  # noqa: PLC0415  # as in delete

        ask_many(self._connected().link, Verb.ABORT, upload_ids)

    def _delete_one(self, name: str, options: dict[str, str] | None = None) -> None:
        tries: _Tries = []
        try:
            self._call(f"cannot remove {name}", Verb.DELETE, (name,), options, tries)
        except NotFoundError:
            # The first try's answer was lost; the second finds the work done.
            if len(tries) == 1:
                raise

    def move(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """Rename a file, replacing what is at ``target``, or a directory. ``NotFoundError``, ``ConflictError``."""
        options = {"if-absent": "1"} if if_absent else {}
        words = (checked_name(source), checked_name(target))
        before = self._look(source)
        tries: _Tries = []
        try:
            self._call(f"cannot move {source}", Verb.MOVE, words, options, tries)
        except NotFoundError:
            # The first try's answer was lost; the second finds the work done: what was there is at the target now.
            if len(tries) == 1 or before is None or not before.is_same_as(self._look(target)):
                raise

    def _look(self, name: str) -> RemoteEntry | None:
        """What ``name`` is; None where there is nothing that this user may see."""
        try:
            return self.stat(name)
        except (NotFoundError, DeniedError):
            return None

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents; harmless when it is there. ``ConflictError``."""
        self._call(f"cannot make the directory {name}", Verb.MKDIR, (checked_name(name),))

    def manifest(self, name: str) -> Manifest:
        """The segment digests of a remote file, checked against its root. ``NotFoundError``, ``IntegrityError``."""
        from .manifest_call import fetch_manifest  # noqa: PLC0415  # rarely needed

        reply = self._call(f"no manifest of {name}", Verb.DOWNLOAD, (checked_name(name),))[-1]
        size, root = parse_size_and_root(reply)
        return fetch_manifest(self._connected(), decode_ticket(reply.options["ticket"]), size, root, name)

    def verify(self, name: str, path: str | os.PathLike[str]) -> bytes:
        """The root that the remote file and the local one have in common; ``IntegrityError`` if they differ."""
        from .sources import SourceChangedError, hash_file  # noqa: PLC0415  # hashing only where it is needed

        try:
            reply = self._call(f"cannot verify {name}", Verb.DOWNLOAD, (checked_name(name),))[-1]
            size, root = parse_size_and_root(reply)
        except DeniedError:
            if self.stat(name).is_directory:
                raise UsageError(f"cannot verify {name}: it is a directory; name the files in it") from None
            raise
        try:
            local = hash_file(os.fspath(path))
        except OSError as error:
            raise local_failure(f"cannot read {os.fspath(path)}", error) from None
        except SourceChangedError:
            raise UsageError(f"cannot verify {os.fspath(path)}: it is no regular file, or it changes") from None
        if local.file_bytes != size or local.root != root:
            what = "sizes" if local.file_bytes != size else "contents"
            raise IntegrityError(f"{name} and {os.fspath(path)} differ in their {what}", "Differs")
        return root

    @property
    def identity(self) -> Identity:
        """Who this connection is logged in as, and the server's certificate."""
        return self._connected().identity

    @property
    def channel_addresses(self) -> tuple[Address, ...]:
        """Where data connections may go: the data port first, then the control port, which takes them too."""
        return self._connected().channel_addresses

    @property
    def limits(self) -> Limits:
        """What the server has announced: the largest file that it takes, how many channels."""
        return self._connected().limits

    def quota(self) -> Quota:
        """What the user has stored, and how much it may be. ``LoginError``."""
        from .quota import parse_quota  # noqa: PLC0415  # rarely needed

        return parse_quota(self._call("no answer about the quota", Verb.QUOTA)[-1])

    def ping(self) -> float:
        """Seconds that one round trip takes."""
        start = time.perf_counter()
        self._call("no answer", Verb.PING)
        return time.perf_counter() - start

    # the session -----------------------------------------------------------------------------------------------------

    def _connected(self) -> Session:
        session = self._session
        if session is None:
            raise UsageError("this client is closed")
        if session.link.error is not None:
            return self._current_session(True)
        return session

    def _current_session(self, anew: bool) -> Session:
        """The session, or another one in its place."""
        session = self._session
        if session is None:
            raise UsageError("this client is closed")
        if anew:
            session.close()
            session = self._session = self._connector.open()
        return session

    def _call(
        self,
        subject: str,
        verb: Verb,
        words: tuple[str, ...] = (),
        options: dict[str, str] | None = None,
        tries: _Tries | None = None,
    ) -> _Replies:
        """The replies to one command, repeated over a new connection when the old one is lost; refusals are raised."""
        backoff = Backoff()
        give_up_at = time.monotonic() + self._patience_seconds
        while True:
            if tries is not None:
                tries.append(1)
            try:
                replies = self._connected().link.call(verb, words, options).result()
            except (NetworkError, BusyError) as error:
                if isinstance(error, ServerProtocolError) or backoff.failures >= CALL_TRIES:
                    raise
                time.sleep(min(backoff.next_seconds(), max(0.0, give_up_at - time.monotonic())))
                continue
            final = replies[-1]
            if final.kind is not ReplyKind.ERROR:
                return replies
            code = final.code or ErrorCode.INTERNAL
            if code is not ErrorCode.BUSY or backoff.failures >= CALL_TRIES:
                raise self._explained(refusal(code, subject))
            time.sleep((final.retry_seconds or 0) + backoff.next_seconds())

    def _explained(self, error: TwinportError) -> TwinportError:
        return error if self._session is None else self._session.explain(error)


CALL_TRIES = 5
