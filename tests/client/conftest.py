"""Fixtures of the client room: real servers in processes of their own, a proxy, trees of files."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import twinport
from twinport import channel_count
from twinport import client as client_module
from twinport.client import Client
from twinport.engine import Policy

from tests.client.servers import Proxy, Rule, ServerProcess, pass_all

PATIENCE_SECONDS = 60.0
COMMAND_SECONDS = 60


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Profiles, known servers and keys of the test's own: nothing of whoever runs it is read or changed."""
    for name in [name for name in os.environ if name.startswith("TWINPORT_")] + ["SSH_AUTH_SOCK"]:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TWINPORT_CONFIG_DIR", str(home / "config"))
    return home / "config"


@pytest.fixture
def several_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfers of this process begin with four channels, as over a long line from a machine with many cores."""
    monkeypatch.setattr(channel_count, "STEPS", ((0.0, 4, 4),))
    monkeypatch.setattr(client_module, "core_count", lambda: 16)


RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_command(tmp_path: Path, own_settings: Path) -> RunCommand:
    """Runs ``twinport`` in the test's directory: exit code, stdout, stderr. Never a traceback."""

    def run(*words: str, given: str = "", **more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", "from twinport.cli import main; main()", *words],
            check=False,
            capture_output=True,
            input=given,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **more},
            timeout=COMMAND_SECONDS,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="session")
def shared_server() -> Iterator[ServerProcess]:
    """One server for all tests that do not disturb each other: use names of your own."""
    with tempfile.TemporaryDirectory(prefix="twinport-test-", dir=_fast_directory()) as root:
        server = ServerProcess(Path(root) / "root").start()
        yield server
        server.stop()


@pytest.fixture
def own_server(shm_path: Path) -> Iterator[ServerProcess]:
    """A server that the test may stop and start."""
    with ServerProcess(shm_path / "root").reserving() as server:
        yield server.start()


@pytest.fixture
def make_proxy() -> Iterator[Callable[..., Proxy]]:
    """Makes proxies before a server; all are closed at the end."""
    proxies: list[Proxy] = []

    def make(server: ServerProcess, rule: Rule = pass_all) -> Proxy:
        proxy = Proxy(server.port, rule)
        proxies.append(proxy)
        return proxy

    yield make
    for proxy in proxies:
        proxy.close()


Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects to a server or proxy by its port; all clients are closed at the end."""
    clients: list[Client] = []

    def make(place: ServerProcess | Proxy, **options: object) -> Client:
        settings: dict[str, object] = {"patience_seconds": PATIENCE_SECONDS, **options}
        client = twinport.connect("127.0.0.1", place.port, **settings)  # type: ignore[arg-type]
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(shared_server: ServerProcess, connect: Connect) -> Client:
    """A client of the shared server."""
    return connect(shared_server)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A directory on the shared server that is this test's own."""
    return "".join(char if char.isalnum() else "-" for char in request.node.name)[:100]


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Makes a file of so many random bytes below the test's directory; the seed tells contents apart."""

    def make(name: str, size: int, seed: int = 1) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(seed).randbytes(size))
        return path

    return make


@pytest.fixture
def hasty() -> Policy:
    """Short waits."""
    return Policy(first_wait_seconds=0.01, longest_wait_seconds=0.1)


def _fast_directory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
