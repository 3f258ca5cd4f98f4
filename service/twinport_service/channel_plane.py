"""All channels of a server: one thread each, capped; those that have not proved themselves live in a small pool of
their own."""

from __future__ import annotations

import functools
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from twinport_protocol.control import Limits
from twinport_protocol.errors import Refusal
from twinport_protocol.tickets import TicketKeys

from .audit import Record, discard
from .bandwidth import Bandwidth
from .buffers import BufferPool
from .channel_audit import ChannelAudit
from .channel_rights import ChannelRights
from .channel_session import ChannelSession
from .channel_times import ChannelTimes
from .channel_transport import ChannelTransport, TlsTransport, plain_transport
from .channel_worker import ChannelWorker
from .congestion import is_local
from .limits import Admission, Crowd, CrowdBounds
from .log import get_log
from .paced_transport import PacedTransport
from .rationed_log import RationedLog
from .uploads import UploadDesk

SEND_BUFFER_BYTES = 1024 * 1024
_LOCAL_UNSENT_BYTES = 64 * 1024
"""What the kernel takes beyond what it can send at once, to a client on this machine."""


@dataclass(frozen=True)
class ChannelBounds:
    """How many channels there may be in all, and how many of them that have not attached yet."""

    channels: int = 1024
    unattached: int = 64
    buffer_bytes: int = 512 * 1024
    kept_buffers: int = 16
    times: ChannelTimes = field(default_factory=ChannelTimes)


class ChannelPlane:
    """Takes over accepted sockets and serves them until they end."""

    def __init__(
        self,
        desk: UploadDesk,
        keys: TicketKeys,
        limits: Limits,
        bounds: ChannelBounds,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        *,
        crowd: Crowd | None = None,
        bandwidth: Bandwidth | None = None,
        record: Record = discard,
        make_rights: Callable[..., ChannelRights] = ChannelRights,
    ) -> None:
        self._desk = desk
        self._crowd = crowd or Crowd(
            CrowdBounds(total=bounds.channels, per_address=bounds.channels, unproved=bounds.unattached, early=False)
        )
        self._bandwidth = bandwidth or Bandwidth()
        self._record = record
        self._make_rights = make_rights
        self._rationed = RationedLog(clock=clock)
        self._keys = keys
        self._limits = limits
        self._bounds = bounds
        self._clock = clock
        self._now = now
        self._pool = BufferPool(bounds.buffer_bytes, bounds.kept_buffers)
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._workers: dict[int, tuple[ChannelWorker, threading.Thread]] = {}
        self._draining = False

    @property
    def count(self) -> int:
        """How many channels there are."""
        return len(self._workers)

    def accept(self, sock: socket.socket, peer: object) -> bool:
        """Serve a non-blocking plain socket whose first bytes are a channel's; False (and closed) past the caps.

        Where too many have not attached, the oldest of those gives way: it has had the most time to prove itself.
        """
        return self._accept(sock, peer, lambda: plain_transport(sock, self._pool), None) is not None

    def accept_tls(
        self, sock: socket.socket, peer: object, context: ssl.SSLContext, on_ready: Callable[[], None]
    ) -> Callable[[], None] | None:
        """The same for a socket whose client wants TLS for a channel. ``on_ready`` is called, from any thread, when the
        handshake is over, and again at the end. Returns what makes the channel give way; None past the caps."""
        return self._accept(sock, peer, lambda: TlsTransport(sock, context, self._pool), on_ready)

    def _accept(
        self,
        sock: socket.socket,
        peer: object,
        make_transport: Callable[[], ChannelTransport],
        on_ready: Callable[[], None] | None,
    ) -> Callable[[], None] | None:
        with self._changed:
            number = next(self._numbers)
            admission = self._admit(number, sock, peer)
            if admission is None:
                return None
            transport: ChannelTransport | None = None
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if is_local(sock):
                    # What waits in the kernel is sent in the client's time there, whenever that has made room.
                    with suppress(OSError):  # a kernel without it
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _LOCAL_UNSENT_BYTES)
                transport = make_transport()
                on_user: Callable[[str], None] = admission.prove
                if self._bandwidth.is_bounded:
                    transport = paced = PacedTransport(transport, self._bandwidth)
                    on_user = functools.partial(_prove, admission, paced)
                make_session = functools.partial(self._make_session, number, peer, transport.secure, on_user)
                worker = ChannelWorker(
                    transport, peer, make_session, self._pool, self._bounds.times, self._clock, on_ready
                )
            except OSError as error:
                get_log().error("[CHANNEL] Refused", peer=peer, error=error.strerror)
                admission.close()
                (transport or sock).close()
                return None
            arguments = (number, worker, admission, on_ready)
            thread = threading.Thread(target=self._run, args=arguments, name=f"channel-{number}", daemon=True)
            self._workers[number] = (worker, thread)
        try:
            thread.start()
        except RuntimeError:
            get_log().error("[CHANNEL] Refused: no more threads", peer=peer)
            self._forget(number, admission)
            worker.close()
            return None
        return worker.abort

    def _admit(self, number: int, sock: socket.socket, peer: object) -> Admission | None:
        try:
            if not self._draining:
                return self._crowd.admit(peer, lambda: self._give_way(number))
        except Refusal as refusal:
            self._rationed.info("[CHANNEL] Refused: too many", peer=peer, why=refusal.detail)
        sock.close()
        return None

    def _give_way(self, number: int) -> None:
        with self._changed:
            worker, _ = self._workers.get(number, (None, None))
            if worker is not None:
                self._rationed.info("[CHANNEL] Gave way to another", peer=worker.peer)
                worker.abort()

    def _make_session(
        self, number: int, peer: object, secure: bool, on_user: Callable[[str], None], wake: Callable[[], None]
    ) -> ChannelSession:
        audit = ChannelAudit(self._record, peer, number, self._clock)
        return ChannelSession(
            self._desk,
            self._keys,
            self._limits,
            wake,
            now=self._now,
            audit=audit,
            on_user=on_user,
            rights=self._make_rights(secure=secure),
        )

    def _run(
        self, number: int, worker: ChannelWorker, admission: Admission, on_ready: Callable[[], None] | None
    ) -> None:
        worker.run()
        if on_ready is not None:
            on_ready()
        tally = worker.session.tally
        if tally.bytes_in or tally.bytes_out or tally.files_in:
            get_log().info(
                f"[CHANNEL] Closed after {tally.bytes_in} bytes in, {tally.bytes_out} bytes out, "
                f"{tally.files_in} files committed, from {worker.peer}"
            )
        self._forget(number, admission)

    def _forget(self, number: int, admission: Admission) -> None:
        admission.close()
        with self._changed:
            del self._workers[number]
            self._changed.notify_all()

    def review(self) -> None:
        """The accounts changed: every channel looks at once whether what it does is still allowed, an idle one too."""
        with self._changed:
            for worker, _ in self._workers.values():
                if worker.attached:
                    worker.wake()

    def abort(self) -> None:
        """Cut every channel now."""
        with self._changed:
            for worker, _ in self._workers.values():
                worker.abort()

    def drain(self, grace_seconds: float) -> None:
        """Stop every channel at a frame boundary; those that have not by ``grace_seconds`` are cut. Blocks, at most
        twice that."""
        with self._changed:
            self._draining = True
            for worker, _ in self._workers.values():
                worker.drain()
            self._changed.wait_for(lambda: not self._workers, timeout=grace_seconds)
            for worker, _ in self._workers.values():
                worker.abort()
            threads = [thread for _, thread in self._workers.values()]
        for thread in threads:
            thread.join(timeout=grace_seconds)


def _prove(admission: Admission, paced: PacedTransport, user: str) -> None:
    admission.prove(user)
    paced.bind(user)
