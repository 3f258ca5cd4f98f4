"""A server's life, written out: what starts in which order, what stops in which order, and within which bounds.

Start: identity, storage with recovery, planes, ports, ready. Stop (SIGTERM, SIGINT): ports, then transfers at their
next frame boundary, then sessions, then the commits that are under way, then storage and ledger. A second signal
skips the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from twinport_protocol.control import Limits
from twinport_protocol.version import VERSION

from .access import Decide, allow_all
from .accounts.authenticator import Authenticator
from .accounts.throttle import Throttle
from .audit import AuditEntry, AuditEvent, discard
from .bundling import BUNDLE_BYTES
from .channel_plane import ChannelBounds, ChannelPlane
from .channel_rights import ChannelRights
from .channel_times import ChannelTimes
from .classic.data import TransferTimes
from .classic.pairing import PairingTimes
from .classic.plane import ClassicLimits, ClassicPlane
from .classic.session import SessionLimits
from .config import ConfigError, Settings
from .control_services import ControlServices, ControlTimes
from .control_session import ControlSession
from .exposure import decide_exposure
from .foundation import Foundation
from .handlers import Handlers
from .listener import Acceptor, Receptionist, Routes, bind, refuse_plain_channel, refuse_plaintext, refuse_text
from .log import get_log
from .room import Floors
from .safeguards import make_safeguards
from .session_doors import SessionDoors, bound_buffers
from .standing import NO_ACCOUNTS
from .tls_plane import TlsPlane
from .uploads import UploadDesk

_CLOCK_SECONDS = 0.25
_SWEEP_SECONDS = 600.0
_STOP_SECONDS = 10.0
_HASHERS = 2
_LISTERS = 2
_Route = Callable[[socket.socket, object], None]


class Server:
    """One node. ``async with Server(...)`` starts and stops it; ``run_until_stopped`` waits for a signal."""

    def __init__(self, settings: Settings, foundation: Foundation, decide: Decide | None = None) -> None:
        accounts = foundation.accounts
        self._exposure = decide_exposure(
            settings,
            has_accounts=accounts is not None and accounts.has_accounts,
            has_anonymous=accounts is not None and accounts.allows_anonymous,
        )
        if foundation.tls is None and not self._exposure.plaintext:
            raise ConfigError("there is neither a certificate for TLS nor leave to do without.")
        self._settings = settings
        self._foundation = foundation
        self._accounts = foundation.accounts
        self._revision = 0
        self._authenticator: Authenticator | None = None
        self._decide = decide or (allow_all if self._accounts is None else self._accounts.decide)
        self._limits = Limits(
            bundle=BUNDLE_BYTES, max_file=settings.max_file_bytes, idle=max(1, int(settings.idle_seconds))
        )
        self._desk = UploadDesk(
            foundation.storage,
            foundation.ledger,
            max_file_bytes=settings.max_file_bytes,
            floors=Floors(foundation.min_free_bytes, foundation.min_free_files),
        )
        self._guards = make_safeguards(settings, accounts)
        self._record = discard if foundation.audit is None else foundation.audit.record
        self._sessions: set[ControlSession] = set()
        self._acceptors: list[Acceptor] = []
        self._stopping = False
        self._classic: ClassicPlane | None = None
        self._tls: TlsPlane | None = None
        self.control_address: tuple[str, int] = ("", 0)
        self.data_address: tuple[str, int] = ("", 0)

    @property
    def serves_classic(self) -> bool:
        """Whether the classic dialect is served: the data port is then its own."""
        return self._exposure.classic

    # start -----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover, listen, serve. Raises ``OSError`` when a port cannot be had; the foundation is closed then."""
        self._loop = asyncio.get_running_loop()
        self._empty, self._enough, self._hurry = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._executor = ThreadPoolExecutor(self._settings.workers, thread_name_prefix="worker")
        self._lister = ThreadPoolExecutor(_LISTERS, thread_name_prefix="worker-list")
        self._hasher = ThreadPoolExecutor(_HASHERS, thread_name_prefix="worker-hash")
        try:
            await self._start()
        except BaseException:
            await self._loop.run_in_executor(None, self._close_foundation)
            await self._loop.shutdown_default_executor()
            raise

    async def _start(self) -> None:
        settings = self._settings
        await self._loop.run_in_executor(self._executor, self._desk.recover)
        if self._exposure.classic:
            self._classic = ClassicPlane(
                self._desk,
                self._decide,
                self._executor,
                self._classic_limits(),
                lister=self._lister,
                on_count=self._log_count,
                record=self._record,
                bandwidth=self._guards.bandwidth,
            )
            await self._loop.run_in_executor(self._executor, self._classic.recover)
        times = ChannelTimes(
            settings.attach_seconds, settings.stall_seconds, settings.idle_seconds, settings.drain_seconds
        )
        bounds = ChannelBounds(settings.max_channels, settings.max_unattached, times=times)
        keys = self._foundation.keys
        self._channels = ChannelPlane(
            self._desk,
            keys,
            self._limits,
            bounds,
            crowd=self._guards.channels,
            bandwidth=self._guards.bandwidth,
            record=self._record,
            make_rights=functools.partial(ChannelRights, self._decide, self._accounts or NO_ACCOUNTS),
        )
        handlers = Handlers(
            self._desk,
            keys,
            self._decide,
            self._limits,
            ticket_seconds=settings.ticket_seconds,
            record=self._record,
        )
        if self._accounts is not None:
            throttle = Throttle(time.monotonic, enabled=settings.login_delays)
            self._authenticator = Authenticator(self._accounts, throttle, record=self._record)
        self._services = ControlServices(
            handlers=handlers,
            executor=self._executor,
            lister=self._lister,
            hasher=self._hasher,
            limits=self._limits,
            times=ControlTimes(
                settings.greeting_seconds,
                settings.idle_seconds,
                settings.stall_seconds,
                settings.login_seconds,
                settings.unsent_seconds,
            ),
            greeting=self._greeting,
            on_open=self._session_opened,
            on_close=self._session_closed,
            authenticator=self._authenticator,
        )
        self._doors = SessionDoors(
            self._guards,
            functools.partial(ControlSession, self._services),
            self._classic.session_factory if self._classic else None,
        )
        if self._foundation.tls is not None:
            self._tls = TlsPlane(
                self._foundation.tls,
                self._channels,
                self._doors.make_tls_session,
                control_seconds=settings.greeting_seconds,
                channel_seconds=settings.attach_seconds,
            )
            self._foundation.tls.describe()
        for warning in self._exposure.warnings:
            get_log().warning(warning)
        self._listen()
        self._record_start()
        self._clock = self._loop.call_later(_CLOCK_SECONDS, self._tick)
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _listen(self) -> None:
        settings = self._settings
        control = bind(settings.host, settings.control_port)
        try:
            data = bind(settings.host, settings.data_port)
        except OSError:
            control.close()
            raise
        self.control_address, self.data_address = _address(control), _address(data)
        self._receptions = [
            Receptionist(
                self._routes(self._doors.open_control, self._doors.open_classic if self._classic else None),
                # A person at a menu says nothing for a while; a program of this dialect greets at once.
                first_byte_seconds=settings.idle_seconds if self._classic else settings.greeting_seconds,
                decide_seconds=settings.greeting_seconds,
            )
        ]
        accept = functools.partial(Acceptor, suits_lines=settings.congestion == "auto")
        self._acceptors = [accept(control, self._receptions[0].receive)]
        if self._classic is not None:
            self._classic.data_port = self.data_address[1]
            self._acceptors.append(accept(data, self._classic.accept_data))
            return
        self._receptions.append(
            Receptionist(
                self._routes(refuse_text),
                first_byte_seconds=settings.attach_seconds,
                decide_seconds=settings.attach_seconds,
                capacity=settings.max_unattached,
            )
        )
        self._acceptors.append(accept(data, self._receptions[1].receive))

    def _routes(self, text: _Route, classic: _Route | None = None) -> Routes:
        tls = self._tls
        return Routes(
            text if self._exposure.plaintext else refuse_plaintext,
            self._channels.accept if self._exposure.plaintext else refuse_plain_channel,
            classic,
            tls_control=self._open_tls_control if tls is not None and text == self._doors.open_control else None,
            tls_channel=tls.accept_channel if tls is not None else None,
        )

    def _classic_limits(self) -> ClassicLimits:
        settings = self._settings
        return ClassicLimits(
            session=SessionLimits(settings.greeting_seconds, settings.idle_seconds, settings.stall_seconds),
            pairing=PairingTimes(settings.classic_pair_seconds, settings.classic_pair_busy_seconds),
            transfer=TransferTimes(settings.stall_seconds),
        )

    def _greeting(self) -> dict[str, str]:
        # While classic is on, the data port is classic only: what comes first there would not tell the two apart.
        port = self.control_address[1] if self._classic else self.data_address[1]
        following = self._tls.next_sha256 if self._tls else None
        return {
            "agent": f"twinportd/{VERSION}",
            "data-port": str(port),
            **({} if following is None else {"next-certificate": following.hex()}),
        }

    # sessions --------------------------------------------------------------------------------------------------------

    def _open_tls_control(self, sock: socket.socket, peer: object) -> None:
        if self._tls is not None:
            bound_buffers(sock)
            self._tls.accept_control(sock, peer)

    def _session_opened(self, session: ControlSession) -> None:
        self._sessions.add(session)
        self._empty.clear()
        self._log_count()

    def _log_count(self) -> None:
        count = len(self._sessions) + (self._classic.sessions if self._classic else 0)
        get_log().info(f"[ACTIVE CONNECTIONS] {count}")

    def _session_closed(self, session: ControlSession) -> None:
        self._sessions.discard(session)
        self._log_count()
        if not self._sessions:
            self._empty.set()

    def _tick(self) -> None:
        now = self._loop.time()
        for session in [session for session in self._sessions if session.deadline <= now]:
            session.check_deadline(now)
        if self._accounts is not None and self._accounts.revision != self._revision:
            self._revision = self._accounts.revision
            self._accounts_changed()
        self._clock = self._loop.call_later(_CLOCK_SECONDS, self._tick)

    def _accounts_changed(self) -> None:
        for session in list(self._sessions):
            session.check_login()
        self._channels.review()

    def _sweep(self) -> None:
        older_than = time.time() - self._settings.upload_keep_seconds
        self._executor.submit(self._desk.sweep, older_than)
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _record_start(self) -> None:
        self._record(AuditEntry(AuditEvent.START))
        self._record(AuditEntry(AuditEvent.EXPOSURE, what=self._exposure.describe(self._settings.host)))
        self._foundation.begin_recording()

    # stop ------------------------------------------------------------------------------------------------------------

    def catch_signals(self) -> None:
        """Take SIGTERM and SIGINT as the wish to stop and SIGHUP as the one to reload; to be called on the main thread,
        before anybody is told that the server is ready."""

        def on_signal() -> None:
            (self._hurry if self._enough.is_set() else self._enough).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, on_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)

    def reload(self) -> None:
        """Look again at what may change while the server runs: the certificate. What SIGHUP asks for."""
        get_log().info("[RELOAD] Looking at the certificate again")
        if self._tls is not None:
            self._tls.renew()
        if self._foundation.audit is not None:
            self._foundation.audit.reopen()

    async def run_until_stopped(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop; a second signal stops without waiting."""
        await self._enough.wait()
        get_log().info("[STOP] Draining")
        stop = self._loop.create_task(self.stop())
        hurry = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({stop, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stop.done():
            get_log().warning("[STOP] At once")
            self._channels.abort()
            for session in list(self._sessions):
                session.abort()
            if self._classic is not None:
                self._classic.close()
        await stop

    async def stop(self) -> None:
        """Stop in order; at most about ``drain_seconds`` plus what the commits under way take. Harmless when
        repeated."""
        if self._stopping:
            return
        self._stopping = True
        for acceptor in self._acceptors:
            acceptor.close()
        for reception in self._receptions:
            reception.close()
        if self._tls is not None:
            self._tls.close()
        for session in list(self._sessions):
            session.notify("draining")
        self._desk.interrupt()
        drain_seconds = self._settings.drain_seconds
        draining = self._loop.run_in_executor(None, self._channels.drain, drain_seconds)
        if self._classic is not None:
            await self._classic.drain(self._settings.classic_grace_seconds)
        await draining
        for session in list(self._sessions):
            session.stop()
        if self._sessions:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._empty.wait(), _STOP_SECONDS)
        for session in list(self._sessions):
            session.abort()
        self._clock.cancel()
        self._sweeper.cancel()
        await self._loop.run_in_executor(None, self._close_foundation)
        await self._loop.shutdown_default_executor()

    def _close_foundation(self) -> None:
        self._executor.shutdown(wait=True)
        self._lister.shutdown(wait=True)
        self._hasher.shutdown(wait=True)
        if self._authenticator is not None:
            self._authenticator.close()
        self._foundation.end_recording()
        self._record(AuditEntry(AuditEvent.STOP))
        self._foundation.close()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _address(listener: socket.socket) -> tuple[str, int]:
    name = listener.getsockname()
    return name[0], name[1]
