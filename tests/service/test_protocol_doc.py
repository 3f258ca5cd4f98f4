"""The example sessions and the example client of docs/protocol.md, run against a server with its defaults."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.conftest import StartServer
from tests.service.running_server import RunningServer

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()
STEP = re.compile(r"(\d)([$><.]) (.*)")
CONTROL_PORT, DATA_PORT = 5001, 5002
TIMEOUT_SECONDS = 30.0


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


class Terminals:
    """Plays a session: what is typed is sent, what is shown must come, line by line; ``…`` stands for anything."""

    def __init__(self, server: RunningServer) -> None:
        self._ports = {CONTROL_PORT: server.server.control_address[1], DATA_PORT: server.server.data_address[1]}
        self._sockets: dict[str, socket.socket] = {}
        self.steps = 0

    def play(self, session: str) -> None:
        for line in session.splitlines():
            match = STEP.fullmatch(line)
            assert match, f"not a step of a session: {line}"
            terminal, act, text = match.groups()
            if act == "$":
                self._connect(terminal, text)
            elif act == ">":
                self._sockets[terminal].sendall(text.encode() + b"\n")
            elif act == "<":
                self._expect(terminal, text)
            else:
                assert text == "closed"
                assert self._sockets[terminal].recv(1) == b"", line
                self._sockets.pop(terminal).close()
            self.steps += 1

    def _connect(self, terminal: str, command: str) -> None:
        words = command.split()
        assert words[:2] == ["nc", "127.0.0.1"]
        address = ("127.0.0.1", self._ports[int(words[2])])
        self._sockets[terminal] = socket.create_connection(address, TIMEOUT_SECONDS)

    def _expect(self, terminal: str, text: str) -> None:
        received = bytearray()
        while not received.endswith(b"\n"):
            byte = self._sockets[terminal].recv(1)
            assert byte, f"the connection ended where {text!r} was to come"
            received += byte
        pattern = re.escape(text).replace("…", ".*")
        for shown, real in self._ports.items():
            pattern = re.sub(rf"\b{shown}\b", str(real), pattern)
        assert re.fullmatch(pattern, received.decode()[:-1]), f"{received!r} instead of {text!r}"

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()


@pytest.fixture
def default_server(start_server: StartServer) -> RunningServer:
    """A server with the classic dialect on, and the patience for people who type."""
    return start_server(classic=True, greeting_seconds=TIMEOUT_SECONDS, attach_seconds=TIMEOUT_SECONDS)


@pytest.fixture
def terminals(default_server: RunningServer) -> Iterator[Terminals]:
    """Two terminals at that server."""
    made = Terminals(default_server)
    yield made
    made.close()


def test_the_example_sessions(terminals: Terminals) -> None:
    classic, twinport = blocks("session")
    terminals.play(classic)
    terminals.play(twinport)
    assert terminals.steps == (classic + twinport).count("\n")


def test_the_example_client(default_server: RunningServer, tmp_path: Path) -> None:
    (source,) = blocks("python")
    assert source.count(f'"127.0.0.1", {CONTROL_PORT}') == 1
    program = tmp_path / "example.py"
    program.write_text(source.replace(str(CONTROL_PORT), str(default_server.server.control_address[1])))
    shown = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert (shown.stdout, shown.stderr) == ("hello again\n", "")
    default_server.assert_no_traceback()
