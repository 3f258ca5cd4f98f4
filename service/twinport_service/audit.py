"""The audit log: who did what, as one JSON object a line, in ``audit.jsonl`` and the numbered files it was rotated to.

Whoever has something to say hands over an :class:`AuditEntry` and goes on; a thread writes what has come together in
one call. Lines are not lost while the disk works: when the queue is full, the caller waits. When the disk does not
work the server goes on serving, as an unwritable log must not be a way to stop it: lines are kept as long as there is
room, those that find none are counted, the server's own log says so once a minute, and a ``gap`` entry tells how many
are missing as soon as writing works again.

What was refused is rationed, as strangers may have it written: else they could wash the log away. Of each kind of event
200 refusals are written at once and then 10 a second; the next one says how many were left out. So is what a user may
do over and over without a byte (``CHEAP_EVENTS``): of each kind and user 10,000 at once and then one a second.
"""

from __future__ import annotations

import enum
import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import NamedTuple

from twinport_protocol.errors import ErrorCode

from .access import ANONYMOUS
from .audit_files import AuditFiles
from .log import get_log
from .rationed_log import RationedLog
from .usage import payer_of

MAX_TEXT_CHARACTERS = 1024
_BATCH_LINES = 1024
_GATHER_SECONDS = 0.02
"""How long lines may wait for each other: a stream of small files is one write in 20 ms, and not one for each."""
_RETRY_SECONDS = 1.0
_QUEUED_LINES = 65_536
_PATIENCE_SECONDS = 5.0
_COMPLAINT_SECONDS = 60.0
_DELETE = "\x7f"
_NOT_A_FIELD = frozenset({"event", "at"})
_REFUSALS_AT_ONCE = 200
_REFUSALS_PER_SECOND = 10.0
_CHEAP_AT_ONCE = 10_000
_CHEAP_PER_SECOND = 1.0


class AuditEvent(enum.Enum):
    """What happened."""

    START = "start"
    STOP = "stop"
    EXPOSURE = "exposure"
    LOGIN = "login"
    LOCK = "lock"
    REFUSAL = "refusal"
    UPLOAD = "upload"
    DOWNLOAD = "download"
    DELETE = "delete"
    MOVE = "move"
    MKDIR = "mkdir"
    ACCOUNT = "account"
    GAP = "gap"


OK = "ok"
CHEAP_EVENTS = frozenset({AuditEvent.LOGIN, AuditEvent.MOVE, AuditEvent.MKDIR})
AUDITED_REFUSALS = frozenset(
    {
        ErrorCode.DENIED,
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.LOCKED,
        ErrorCode.LOGIN_FAILED,
        ErrorCode.LOGIN_REQUIRED,
        ErrorCode.TLS_REQUIRED,
        ErrorCode.TICKET_INVALID,
        ErrorCode.TICKET_REVOKED,
    }
)
"""What somebody was not allowed, as against what did not work."""


class AuditEntry(NamedTuple):
    """One line. There is no free text, so that no secret can get in by mistake; None is left out.

    ``outcome`` is ``ok`` or an error code; ``file`` a remote name as it was asked for, ``to`` where a move went;
    ``root`` the digest of the content; ``session`` and ``channel`` number the connection; ``method`` is
    how somebody logged in, ``what`` a word of the program's (an exposed address, an act that was denied). What was
    changed about an account has a ``detail``, an ``author``, an id of its own (``change``), and the time ``at`` which
    it was done, which is then the time of the line.
    """

    event: AuditEvent
    user: str | None = None
    peer: object = None
    file: str | None = None
    to: str | None = None
    size: int | None = None
    root: bytes | None = None
    seconds: float | None = None
    outcome: str = OK
    session: int | None = None
    channel: int | None = None
    method: str | None = None
    what: str | None = None
    detail: str | None = None
    author: str | None = None
    change: str | None = None
    at: float | None = None


Record = Callable[[AuditEntry], None]
"""How entries are handed over, from any thread."""


def discard(entry: AuditEntry) -> None:
    """The record of a server without an audit log."""
    del entry


def format_entry(entry: AuditEntry, now: float, left_out: int | None = None) -> bytes:
    """The line of an entry: printable ASCII, whatever names are made of. ``left_out`` like it were not written."""
    # Field by field: an encoder for whole objects would be made anew for each of thousands of lines a second.
    fields = [f'{{"time":"{_stamp(now if entry.at is None else entry.at)}","event":"{entry.event.value}"']
    for key, value in zip(AuditEntry._fields, entry, strict=True):
        if value is not None and key not in _NOT_A_FIELD:
            fields.append(f'"{key}":{_as_json(value)}')
    if left_out is not None:
        fields.append(f'"left_out":{left_out}')
    # JSON takes DEL for a printable character; terminals do not.
    return ",".join(fields).replace(_DELETE, "\\u007f").encode("ascii") + b"}\n"


def _as_json(value: object) -> str:
    if isinstance(value, str):
        return encode_basestring_ascii(value[:MAX_TEXT_CHARACTERS])
    if isinstance(value, bytes):
        return f'"{value.hex()}"'
    if isinstance(value, float):
        return repr(round(value, 3))
    return repr(value) if isinstance(value, int) else encode_basestring_ascii(address_of(value)[:MAX_TEXT_CHARACTERS])


def address_of(peer: object) -> str:
    """A peer name as one word: ``192.0.2.7:40000``, ``[2001:db8::1]:40000``."""
    if not isinstance(peer, tuple) or len(peer) < 2:  # noqa: PLR2004 (host and port)
        return str(peer)
    host = str(peer[0]).removeprefix("::ffff:")
    return f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"


def _stamp(now: float) -> str:
    milliseconds = int(now * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _Ration:
    """How many lines of one kind may be written."""

    def __init__(self, now: float, at_once: int, per_second: float) -> None:
        self._at_once, self._per_second = at_once, per_second
        self._left = float(at_once)
        self._at = now
        self.left_out = 0

    def passes(self, now: float) -> bool:
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            self.left_out += 1
            return False
        self._left -= 1
        return True


class AuditLog:
    """Writes entries to ``directory``, in a thread of its own, until :meth:`close`.

    ``max_bytes`` is the size at which a file is rotated, ``keep`` how many rotated ones are kept. ``now`` is the wall
    clock, ``clock`` a monotonic one. Raises ``OSError`` when the directory or its file cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        keep: int = 8,
        queued_lines: int = _QUEUED_LINES,
        patience_seconds: float = _PATIENCE_SECONDS,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._rations: dict[tuple[AuditEvent, str | None], _Ration] = {}  # of an event and, if it is OK, an account
        self._files = AuditFiles(directory, max_bytes=max_bytes, keep=keep)
        self._now = now
        self._queued_lines = queued_lines
        self._batch_lines = min(_BATCH_LINES, queued_lines)
        self._patience_seconds = patience_seconds
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._failing = False
        self._closing = False
        self._reopening = False
        self._taken = self._written = self._synced = self._sync_to = 0  # lines, counted since the start
        self._lost = 0
        self._complaints = RationedLog(_COMPLAINT_SECONDS)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """How many entries found no room since the last ``gap``."""
        return self._lost

    def record(self, entry: AuditEntry) -> None:
        """Hand over an entry; from any thread. Waits for room, but for a disk that has failed or hangs not long."""
        self.take(entry)

    def take(self, entry: AuditEntry) -> bool:
        """As :meth:`record`; False when the entry is lost or left out."""
        left_out: int | None = None
        if entry.outcome != OK or entry.event in CHEAP_EVENTS:
            with self._changed:
                ration = self._ration_of(entry)
                if not ration.passes(self._clock()):
                    return False
                left_out, ration.left_out = ration.left_out or None, 0
        line = format_entry(entry, self._now(), left_out)
        with self._changed:
            # Not within that time: a disk that hangs. The next caller need not find out for itself.
            self._failing |= not self._changed.wait_for(self._has_room, self._patience_seconds)
            if len(self._lines) >= self._queued_lines or self._closing:
                self._lost += 1
                self._complaints.error("[AUDIT] Entries are lost: the audit log cannot be written", lost=self._lost)
                return False
            self._append(line)
            if len(self._lines) in (1, self._batch_lines):
                self._changed.notify_all()
        return True

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._taken += 1

    def _ration_of(self, entry: AuditEntry) -> _Ration:
        # Names of refused users are anybody's invention; the others are accounts, so that the table has a bound.
        # Strangers have a ration to themselves: they must not hide what those who logged in were refused.
        if entry.outcome == OK and entry.user is not None:
            user: str | None = payer_of(entry.user)
        else:
            user = ANONYMOUS if entry.user in (None, ANONYMOUS) else None
        ration = self._rations.get((entry.event, user))
        if ration is None:
            is_ok = entry.outcome == OK
            bounds = (_CHEAP_AT_ONCE, _CHEAP_PER_SECOND) if is_ok else (_REFUSALS_AT_ONCE, _REFUSALS_PER_SECOND)
            ration = self._rations[entry.event, user] = _Ration(self._clock(), *bounds)
        return ration

    def _has_room(self) -> bool:
        return len(self._lines) < self._queued_lines or self._failing or self._closing

    def reopen(self) -> None:
        """Somebody moved the file away (SIGHUP): make a new one. It is noticed without being told too, within a
        second."""
        with self._changed:
            self._reopening = True
            self._changed.notify_all()

    def flush(self, within_seconds: float = _PATIENCE_SECONDS) -> bool:
        """Wait until all that was handed over is written; False when it is not within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines, within_seconds)

    def sync(self, within_seconds: float = _PATIENCE_SECONDS) -> bool:
        """Wait until all that was handed over is on the disk; False when it is not within that time."""
        with self._changed:
            upto = self._sync_to = self._taken
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._synced >= upto, within_seconds)

    def close(self) -> None:
        """Write what is left, as far as that works, and end. Harmless when repeated."""
        with self._changed:
            if not self._closing:
                for (event, user), ration in self._rations.items():
                    if ration.left_out:
                        gap = AuditEntry(AuditEvent.GAP, user, what=event.value)
                        self._append(format_entry(gap, self._now(), ration.left_out))
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    # the thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait():
                self._write_batch()
        except Exception:
            get_log().exception("[AUDIT] Internal error: the audit log has ended")
            with self._changed:
                self._failing = self._closing = True
                self._lines.clear()
                self._changed.notify_all()
        finally:
            self._files.close()

    def _wait(self) -> bool:
        """Until there is something to write; False at the end."""
        with self._changed:
            if self._failing:
                self._changed.wait_for(lambda: self._closing, _RETRY_SECONDS)
            else:
                self._changed.wait_for(lambda: self._has_work or self._closing)
                self._changed.wait_for(lambda: self._closing or len(self._lines) >= self._batch_lines, _GATHER_SECONDS)
            return self._has_work if self._closing else True

    @property
    def _has_work(self) -> bool:
        return bool(self._lines or self._reopening or self._lost or self._sync_to > self._synced)

    def _write_batch(self) -> None:
        with self._changed:
            reopening, self._reopening = self._reopening, False
            sync_to = self._sync_to
            if self._lost and not self._failing:
                lost, self._lost = self._lost, 0
                self._append(format_entry(AuditEntry(AuditEvent.GAP), self._now(), lost))
            # Only this thread takes lines away, so they may stay in the queue until they are written.
            batch = list(itertools.islice(self._lines, self._batch_lines))
        try:
            if reopening:
                self._files.reopen()
            self._wrote(self._files.write(batch))
            if self._synced < sync_to <= self._written:
                self._files.sync()
        except OSError as error:
            self._complaints.error("[AUDIT] Cannot write the audit log; the server goes on", error=error.strerror)
            with self._changed:
                self._failing = True
                if self._closing:
                    self._lost, self._sync_to = 0, self._synced
                    self._lines.clear()
                self._changed.notify_all()
            return
        with self._changed:
            if self._failing:
                get_log().info("[AUDIT] The audit log can be written again")
            self._failing = False
            if sync_to <= self._written:
                self._synced = sync_to
            self._changed.notify_all()

    def _wrote(self, lines: int) -> None:
        with self._changed:
            for _ in range(lines):
                self._lines.popleft()
            self._written += lines
            self._changed.notify_all()
