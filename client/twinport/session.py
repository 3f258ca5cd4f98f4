"""A session: the greeting and the login on a connected control connection, and what channels need to know of it."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from twinport_protocol.auth import parse_user
from twinport_protocol.control import ControlClient, Greeting, Limits
from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal, RemoteProtocolError
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.names import parse_name
from twinport_protocol.numbers import parse_size

from .addresses import MAX_PORT, Address
from .congestion import LineFacts
from .control_link import ControlLink
from .errors import BusyError, LoginError, NetworkError, TwinportError, refusal
from .login import Login, Proof, Situation
from .timings import OpeningTimes
from .walk import show

NONCE_BYTES = 16
LOGIN_SECONDS = 60.0
"""Servers make refused logins wait, and queue passwords."""
MAX_BUSY = 3
MAX_RETRY_SECONDS = 10
READ_BYTES = 65536
# A server that allows none of these could only be waited for.
LEAST_ONE = ("window_commands", "window_bytes", "channels", "frames", "credit", "piece", "attachments")


@dataclass(frozen=True)
class Identity:
    """Who this session is and who the server is. ``certificate`` is a SHA-256, None without TLS; ``user`` None without
    a login; ``home`` empty where the user has no folder of its own; ``agent`` the server's program and version, in its
    own words."""

    certificate: bytes | None = None
    tls_version: str | None = None
    user: str | None = None
    home: str = ""
    agent: str = ""


def user_in(options: Mapping[str, str]) -> str | None:
    """Who one is, by the server's answer. It is shown and stored: ``RemoteProtocolError`` for what can be no user."""
    user = options.get("user")
    try:
        return user if user is None else parse_user(user)
    except Refusal:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a user that is none") from None


def home_in(options: Mapping[str, str]) -> str:
    """The folder of one's own, by the server's answer; empty for none. ``RemoteProtocolError`` for what is no name."""
    home = options.get("home", "").strip("/")
    try:
        return home and parse_name(home)
    except ProtocolError:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a home that is none") from None


class Session:
    """One control connection that has been greeted and logged in, and the addresses of its channels. ``line`` is how it
    was found then, ``opening`` how long that took."""

    def __init__(
        self,
        link: ControlLink,
        limits: Limits,
        channel_addresses: tuple[Address, ...],
        identity: Identity,
        line: LineFacts,
        opening: OpeningTimes,
    ) -> None:
        self.link = link
        self.limits = limits
        self.channel_addresses = channel_addresses
        self.identity = identity
        self.line = line
        self.opening = opening

    def close(self) -> None:
        """Say goodbye and close."""
        self.link.close()

    def explain(self, error: TwinportError) -> TwinportError:
        """The error, with what this session knows about it."""
        if error.code == ErrorCode.DENIED.value and self.identity.home:
            error.add_hint(f"your folder is {show(self.identity.home)}/")
        return error


class LoginLostError(Exception):
    """The connection was lost during the login; the proof at hand is put back."""


class Opening:
    """The first lines on a connection that still blocks."""

    def __init__(
        self, connection: socket.socket, address: Address, agent: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.protocol = ControlClient()
        self.options: Mapping[str, str] = {}
        self._connection = connection
        self._address = address
        self._agent = agent
        self._sleep = sleep
        self._nonce = os.urandom(NONCE_BYTES).hex()

    def greet(self) -> None:
        """Exchange greetings. ``ProtocolError``, ``OSError``, ``NetworkError``."""
        self._connection.sendall(self.protocol.hello({"agent": self._agent, "nonce": self._nonce}))
        event = self._next_event("before its greeting; is it a twinportd?")
        assert isinstance(event, Greeting)  # noqa: S101  # the protocol yields nothing before it
        self.options = event.options
        if min(getattr(self.protocol.limits, name) for name in LEAST_ONE) < 1:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a limit of nothing")
        following = self.options.get("next-certificate", "")
        if following and not re.fullmatch("[0-9a-f]{64}", following):
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a next certificate that is none")

    @property
    def following(self) -> bytes | None:
        """The SHA-256 of the certificate that the server announces."""
        text = self.options.get("next-certificate")
        return bytes.fromhex(text) if text else None

    def channel_addresses(self) -> tuple[Address, ...]:
        """Where channels may go; the control port takes them too, for networks that let only one port through."""
        address = self._address
        port = parse_size(self.options.get("data-port", str(address.port)).encode(), maximum=MAX_PORT) or address.port
        return (Address(address.host, port), address) if port != address.port else (address,)

    def wants(self, login: Login) -> bool:
        """Whether :meth:`log_in` would send a proof."""
        wish = self.options.get("login")
        return wish is not None and (wish == "required" or login.is_wanted)

    def log_in(self, login: Login, certificate: bytes | None, *, is_private: bool) -> Mapping[str, str]:
        """Log in if the server wants it or the user does; what the server answered, empty without a login.

        ``is_private`` says that nobody else reads the connection. ``LoginError``, ``BusyError``; ``LoginLostError``:
        connect again and go on.
        """
        wish = self.options.get("login")
        if wish != "required" and not login.is_wanted:
            return {}
        if wish is None:
            if not login.is_named:
                return {}
            raise LoginError(
                f"{self._address} has no accounts, so nobody can log in there; leave out --user and --key",
                "NoAccounts",
            )
        if not is_private:
            raise LoginError(
                f"no login to {self._address} without TLS: everybody on the way could read it; leave out --plaintext",
                "TlsRequired",
            )
        situation = Situation(self.options.get("nonce", ""), self._nonce, certificate)
        self._connection.settimeout(LOGIN_SECONDS)
        login.begin()
        while True:
            proof = login.next_proof()
            if proof is None:
                raise login.refused(str(self._address))
            try:
                method, options = proof.words(situation)
            except LoginError as error:
                login.tried.append(f"{proof.label} ({error.message})")
                continue
            try:
                final = self._try(method, options, may_wait=bool(login.tried))
            except (OSError, NetworkError):
                login.put_back(proof)
                raise LoginLostError from None
            if final.kind is not ReplyKind.ERROR:
                login.accept(proof)
                return final.options
            self._on_refusal(final, login, proof)

    def _try(self, method: str, options: dict[str, str], *, may_wait: bool) -> Reply:
        # After a refused password the server takes the next one a little later: that much is not worth an error.
        passing = {ErrorCode.BUSY, ErrorCode.LOCKED} if may_wait else {ErrorCode.BUSY}
        for attempt in range(MAX_BUSY + 1):
            number, line = self.protocol.command(Verb.LOGIN, (method,), options)
            self._connection.sendall(line)
            reply = self._final_reply(number)
            wait = 1 if reply.retry_seconds is None else reply.retry_seconds
            if reply.code not in passing or attempt == MAX_BUSY or wait > MAX_RETRY_SECONDS:
                break
            self._sleep(wait)
        return reply

    def _final_reply(self, number: int) -> Reply:
        while True:
            event = self._next_event("during the login")
            if not isinstance(event, Reply):
                continue
            if event.id == number and event.kind.ends_command:
                return event
            if event.id == 0 and event.kind is ReplyKind.ERROR:
                raise NetworkError(f"the server ended the connection: {event.text}")

    def _on_refusal(self, final: Reply, login: Login, proof: Proof) -> None:
        code = final.code or ErrorCode.INTERNAL
        if code is ErrorCode.LOGIN_FAILED:
            login.tried.append(proof.label)
            if login.is_repeated:
                raise login.refused(str(self._address))
        elif code is ErrorCode.LOCKED:
            seconds = final.retry_seconds or 0
            kind = BusyError if login.is_repeated else LoginError  # in mid transfer it is worth waiting for
            raise kind(
                f"{self._address} takes no login of this kind now: too many failed before; try again in {seconds} s, "
                "or log in with an SSH key [Locked]",
                code.value,
            )
        else:
            raise refusal(code, f"{self._address} refused the login")

    def _next_event(self, moment: str) -> Greeting | Reply:
        while True:
            for event in self.protocol.events():
                return event
            data = self._connection.recv(READ_BYTES)
            if not data:
                raise NetworkError(f"the server closed the connection {moment}")
            self.protocol.feed(data)
