"""Whether the time of a refused login tells who has an account: medians of known against unknown users.

    python -m benchmarks.login [--tries 300] [--method password|key|token]

The server's delays are switched off. Known and unknown users take turns, one try at a time, so that whatever else the
machine does meets both. Prints one JSON object; exit code 1 when the medians differ by more than 3 percent.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from twinport_protocol.auth import SshSignature
from twinport_protocol.control import ControlClient, Greeting
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Reply, Verb
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.keys import parse_keys
from twinport_service.accounts.passwords import hash_password
from twinport_service.accounts.records import Account
from twinport_service.accounts.tokens import make_token

from benchmarks.daemon import start_daemon

TRIES_PER_SESSION = 8
MAX_DIFFERENCE = 0.03
_NONCE = "00" * 16


class Session:
    """A blocking control connection that logs in, in vain."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.create_connection(address)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wire = ControlClient()
        self._sock.sendall(self._wire.hello({"agent": "benchmark", "nonce": _NONCE}))
        self._next()

    def _next(self) -> Greeting | Reply:
        while True:
            for event in self._wire.events():
                return event
            data = self._sock.recv(64 * 1024)
            if not data:
                raise ConnectionError("the server closed")
            self._wire.feed(data)

    def refused_seconds(self, method: str, options: dict[str, str]) -> float:
        """How long one refusal takes."""
        _, line = self._wire.command(Verb.LOGIN, (method,), options)
        began = time.perf_counter()
        self._sock.sendall(line)
        reply = self._next()
        seconds = time.perf_counter() - began
        assert isinstance(reply, Reply)
        assert reply.code is ErrorCode.LOGIN_FAILED, reply
        return seconds

    def close(self) -> None:
        """Close."""
        self._sock.close()


def make_options(database: AccountDatabase, directory: Path, method: str) -> tuple[dict[str, str], dict[str, str]]:
    """What LOGIN is given for a known and for an unknown user; makes the account of the known one."""
    key_file = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key_file)], check=True)
    (key,) = parse_keys(key_file.with_suffix(".pub").read_text())
    database.add(Account("known", time.time(), hash_password(secrets.token_urlsafe()), keys=(key,)))
    _, token = make_token("known", "", time.time())
    database.add_token(token)
    if method == "password":
        return {"user": "known", "password": "x" * 12}, {"user": "nobody", "password": "x" * 12}
    if method == "token":
        wrong = f"tp_{token.id}_{base64.urlsafe_b64encode(bytes(32)).rstrip(b'=').decode()}"
        return {"token": wrong}, {"token": wrong.replace(token.id, secrets.token_hex(8))}
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key_file), "-n", "auth@twinport"]
    armor = subprocess.run(command, input=b"another message", stdout=subprocess.PIPE, check=True).stdout.decode()
    word = SshSignature.from_armor(armor).to_word()
    return {"user": "known", "signature": word}, {"user": "nobody", "signature": word}


def measure(address: tuple[str, int], tries: int, method: str, options: tuple[dict[str, str], dict[str, str]]) -> float:
    """Take turns; print the medians, and return their ratio."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(0, tries, TRIES_PER_SESSION // 2):
        with closing(Session(address)) as session:
            session.refused_seconds(method, options[1])  # the first of a session is slower, whoever it is
            for turn in range(min(TRIES_PER_SESSION // 2, tries - number)):
                for which in (0, 1) if turn % 2 else (1, 0):
                    seconds[which].append(session.refused_seconds(method, options[which]))
    known, unknown = (statistics.median(side) for side in seconds)
    ratio = known / unknown
    figures = {
        "method": method,
        "tries_each": tries,
        "known_median_ms": round(known * 1e3, 4),
        "unknown_median_ms": round(unknown * 1e3, 4),
        "ratio": round(ratio, 4),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(figures))
    return ratio


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=300)
    parser.add_argument("--method", choices=("password", "key", "token"), default="password")
    words = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = directory / "root" / ".twinport"
        own.mkdir(mode=0o700, parents=True)
        with closing(AccountDatabase(own / "accounts.db")) as database:
            options = make_options(database, directory, words.method)
        server = start_daemon(stack, directory / "root", "--no-login-delays", "--log-level", "error")
        ratio = measure(server.control_address, words.tries, words.method, options)
    return 0 if abs(ratio - 1) <= MAX_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
