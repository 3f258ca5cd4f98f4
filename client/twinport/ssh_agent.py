"""The SSH agent: which keys it holds, and signatures of them (draft-ietf-sshm-ssh-agent, what OpenSSH speaks).

Each call is a connection of its own, with a deadline; messages are bounded. An agent that is not there, dies or talks
nonsense is a ``LoginError`` that says so.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass

from twinport_protocol.auth import ALGORITHMS, key_fingerprint, key_type, split_strings
from twinport_protocol.errors import ProtocolError

from .errors import LoginError

LIST_SECONDS = 5.0
SIGN_SECONDS = 60.0
"""An agent may ask its user before it signs."""
MAX_MESSAGE_BYTES = 256 * 1024
MAX_KEYS = 64
_FAILURE = 5
_REQUEST_IDENTITIES, _IDENTITIES_ANSWER = 11, 12
_SIGN_REQUEST, _SIGN_RESPONSE = 13, 14
_RSA_SHA2_512 = 4


@dataclass(frozen=True)
class AgentKey:
    """A key in the agent at the socket ``path``; a ``Signer``."""

    path: str
    public_key: bytes
    label: str

    def sign(self, data: bytes) -> tuple[str, bytes]:
        """The algorithm and the signature. ``LoginError``."""
        kind = key_type(self.public_key)
        flags = _RSA_SHA2_512 if kind == "ssh-rsa" else 0
        body = _string(self.public_key) + _string(data) + struct.pack("!I", flags)
        answer = _ask(self.path, _SIGN_REQUEST, body, _SIGN_RESPONSE, SIGN_SECONDS)
        try:
            (inner,) = split_strings(answer, 1)
            algorithm, signature = split_strings(inner, 2)
        except ProtocolError:
            raise _nonsense("a signature that is none") from None
        name = algorithm.decode("ascii", "replace")
        if name not in ALGORITHMS[kind]:
            raise _nonsense("a signature of another algorithm")
        return name, signature


def agent_path() -> str | None:
    """Where the agent is, as ``SSH_AUTH_SOCK`` says."""
    return os.environ.get("SSH_AUTH_SOCK") or None


def agent_keys(path: str) -> list[AgentKey]:
    """The keys of the agent at ``path`` that can log in anywhere here, at most 64. ``LoginError``."""
    answer = _ask(path, _REQUEST_IDENTITIES, b"", _IDENTITIES_ANSWER, LIST_SECONDS)
    found: list[AgentKey] = []
    at = 4
    for _ in range(min(int.from_bytes(answer[:4], "big"), MAX_KEYS)):
        blob, at = _take(answer, at)
        _, at = _take(answer, at)
        try:
            kind = key_type(blob)
        except ProtocolError:
            continue  # a certificate, a security key, DSA
        found.append(AgentKey(path, blob, f"agent key {kind} {key_fingerprint(blob)}"))
    return found


def _take(data: bytes, at: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[at : at + 4], "big")
    end = at + 4 + length
    if len(data) < at + 4 or end > len(data):
        raise _nonsense("a list that is cut short")
    return data[at + 4 : end], end


def _ask(path: str, kind: int, body: bytes, expected: int, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(struct.pack("!IB", len(body) + 1, kind) + body)
            length = int.from_bytes(_receive(connection, 4, deadline), "big")
            if not 0 < length <= MAX_MESSAGE_BYTES:
                raise _nonsense("a message of an impossible length")
            answer = _receive(connection, length, deadline)
    except TimeoutError:
        raise LoginError(f"the SSH agent did not answer within {seconds:.0f} s; see SSH_AUTH_SOCK") from None
    except OSError as error:
        raise LoginError(f"no SSH agent at {path}: {error.strerror or error}; see SSH_AUTH_SOCK") from None
    if answer[0] == _FAILURE:
        raise LoginError("the SSH agent refused: the key is locked, gone, or its use was not confirmed")
    if answer[0] != expected:
        raise _nonsense("an answer to something else")
    return answer[1:]


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        more = connection.recv(count - len(data))
        if not more:
            raise LoginError("the SSH agent closed the connection in the middle of an answer")
        data += more
    return bytes(data)


def _nonsense(what: str) -> LoginError:
    return LoginError(f"the SSH agent at SSH_AUTH_SOCK sent {what}; is it an SSH agent?")


def _string(value: bytes) -> bytes:
    return struct.pack("!I", len(value)) + value
