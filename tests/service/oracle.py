"""What must hold after every attack: a new client is served at once, nothing partial is seen, nothing is left."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from twinport_protocol.errors import RemoteProtocolError
from twinport_protocol.frames import AckStatus

from tests.service.raw_client import ClosedError, RawChannel, RawControl, await_true, fetch_file, send_file
from tests.service.running_server import RunningServer

FRESH_CLIENT_SECONDS = 1.0
BUSY_MACHINE_SECONDS = 30.0
_CANARY = "oracle canary"


class Oracle:
    """Checks one running server. Tell :meth:`sent` what was completely sent under a name; then :meth:`check`."""

    def __init__(self, server: RunningServer, outside: Path) -> None:
        self._server = server
        self._outside = outside
        self._sent: dict[str, set[bytes]] = {}
        self._tree = _fingerprint(outside)
        self._sessions = server.session_count
        self._channels = server.channel_count

    def sent(self, name: str, *contents: bytes) -> None:
        """These contents were completely sent under that name: it may hold any of them."""
        self._sent.setdefault(name, set()).update(contents)

    def check(self, *, is_idle: bool = True) -> None:
        """Run all checks; ``is_idle`` when every client of the test is gone."""
        # On a busy machine some tries may be unlucky; a server that keeps people waiting does so every time.
        give_up_at = time.monotonic() + BUSY_MACHINE_SECONDS
        while not self._serves_a_new_client_at_once():
            assert time.monotonic() < give_up_at, "a new client waited too long"
        self._shows_only_whole_files()
        assert _fingerprint(self._outside) == self._tree, "something outside the root was touched"
        if is_idle:
            await_true(lambda: self._server.session_count <= self._sessions, what="the end of all sessions")
            await_true(lambda: self._server.channel_count <= self._channels, what="the end of all channels")
        # Not at once: an upload that ends between the two looks was in the first and is not in the second.
        await_true(
            lambda: self._server.staged_uploads() <= self._server.live_uploads(), what="no staging without upload"
        )
        self._server.assert_no_traceback()

    def _serves_a_new_client_at_once(self) -> bool:
        began = time.monotonic()
        try:
            self._serve_a_new_client()
        except (ClosedError, RemoteProtocolError):
            # With deadlines as short as the tests have them, a machine that is too busy is told that it is late.
            if self._server.settings.attach_seconds > FRESH_CLIENT_SECONDS:
                raise
            return False
        return time.monotonic() - began < FRESH_CLIENT_SECONDS

    def _serve_a_new_client(self) -> None:
        content = secrets.token_bytes(5000)
        self._sent.setdefault(_CANARY, set()).add(content)
        with RawControl(self._server.control_address) as control, RawChannel(self._server.data_address) as channel:
            status = send_file(control, channel, _CANARY, content, secrets.token_bytes(16))
            assert status is AckStatus.COMMITTED, status
            assert fetch_file(control, channel, _CANARY) == content
            assert _CANARY in control.names(_CANARY)
        self._sent[_CANARY] = {content}

    def _shows_only_whole_files(self) -> None:
        with RawControl(self._server.control_address) as control, RawChannel(self._server.data_address) as channel:
            names = control.names()
            assert names == sorted(set(names), key=str.encode), "a listing is in order and says everything once"
            for name in names:
                assert name in self._sent, f"nobody sent {name!r} completely"
                content = fetch_file(control, channel, name)
                assert content in self._sent[name], f"{name!r} holds what nobody sent"


def _fingerprint(directory: Path) -> dict[str, tuple[int, int, int, str]]:
    found: dict[str, tuple[int, int, int, str]] = {}
    for folder, _, files in os.walk(directory):
        for file in files:
            path = Path(folder, file)
            status = path.lstat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, digest)
    return found


MakeOracle = Callable[[RunningServer], Oracle]
