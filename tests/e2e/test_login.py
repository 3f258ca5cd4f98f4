"""The commands against a real server with accounts: every way to log in, over TLS, with certificates that are pinned,
announced and changed, and a server that dies in mid transfer."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.processes import Daemon, make_file, sha256_of

CLIENT = [sys.executable, "-c", "from twinport.cli import main; main()"]
SERVER = [sys.executable, "-c", "from twinport_service.cli import main; main()"]
RUN_SECONDS = 90
PASSWORD = "correct horse battery staple"


class Place:
    """A server with accounts, and a client with a home of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.home.mkdir(parents=True)
        self.root = directory / "root"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TWINPORT_")},
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
        }
        self.environment.pop("SSH_AUTH_SOCK", None)
        self.daemon = Daemon(self.root, directory / "server.log", "--tls", "on")

    def manage(self, *words: str, given: str = "") -> str:
        """``twinportd`` for the server's root."""
        done = subprocess.run(
            [*SERVER, *words, "--root", str(self.root)],
            check=False,
            input=given,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def add_user(self, name: str, *words: str) -> Path:
        """An account with a key; the key."""
        key = self.directory / f"key-{name}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.manage("user", "add", name, "--key", f"{key}.pub", *words)
        return key

    def fingerprint(self) -> str:
        """What the server's administrator reads out."""
        found: str = json.loads(self.manage("cert", "show", "--json"))["sha256"]
        return found

    def run(self, *words: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """``twinport``; never a traceback."""
        done = subprocess.run(
            [*CLIENT, *words],
            check=False,
            input=given,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env={**self.environment, **more},
            timeout=RUN_SECONDS,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def succeed(self, *words: str, given: str = "", **more: str) -> str:
        """``twinport`` with exit code 0; its stdout."""
        done = self.run(*words, given=given, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, *words: str, answers: dict[bytes, bytes]) -> tuple[int, str]:
        """``twinport`` on a terminal: to each prompt its answer."""
        theirs, ours = pty.openpty()
        process = subprocess.Popen(
            [*CLIENT, *words],
            stdin=ours,
            stdout=ours,
            stderr=ours,
            cwd=self.directory,
            env=self.environment,
            start_new_session=True,
        )
        os.close(ours)
        shown = bytearray()
        waiting = dict(answers)

        def read() -> None:
            while True:
                try:
                    data = os.read(theirs, 65536)
                except OSError:  # the other end is closed
                    return
                if not data:
                    return
                shown.extend(data)
                for prompt in [prompt for prompt in waiting if prompt in shown]:
                    os.write(theirs, waiting.pop(prompt))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            code = process.wait(RUN_SECONDS)
        finally:
            process.kill()
            reader.join()
            os.close(theirs)
        return code, shown.decode()


@pytest.fixture
def place(shm_path: Path) -> Iterator[Place]:
    """With no account yet, not started."""
    made = Place(shm_path)
    made.daemon.reserve()
    yield made
    made.daemon.close()
    if made.daemon.log.exists():
        made.daemon.assert_no_traceback()


def test_a_key_and_a_pin_are_all_it_takes(place: Place) -> None:
    key = place.add_user("alice", "--max-bytes", "1M")
    place.daemon.start()
    fingerprint = place.fingerprint()
    login = ["login", f"alice@{place.daemon.host}", "--key", str(key)]
    refused = place.run(*login)
    assert refused.returncode == 4
    assert f"--fingerprint {fingerprint}" in refused.stderr
    place.succeed(*login, "--fingerprint", fingerprint)

    who = json.loads(place.succeed("whoami", "--json"))
    assert who == {
        "user": "alice",
        "home": "alice",
        "host": "127.0.0.1",
        "port": place.daemon.control_port,
        "tls": "TLSv1.3",
        "fingerprint": fingerprint,
    }
    shown = place.succeed("whoami")
    assert shown.startswith("user         alice\nhome         alice/\n")

    make_file(place.directory / "file", 300_000, seed=1)
    make_file(place.directory / "large", 900_000, seed=2)
    place.succeed("put", "file", "--to", "alice")
    place.succeed("get", "alice/file", "-o", "copy")
    assert sha256_of(place.directory / "copy") == sha256_of(place.directory / "file")

    denied = place.run("put", "file", "--to", "bob")
    assert denied.returncode == 8
    assert "your folder is alice/" in denied.stderr
    full = place.run("put", "large", "--to", "alice")
    assert full.returncode == 6
    quota = json.loads(place.succeed("quota", "--json"))
    assert (quota["user"], quota["files"], quota["max_bytes"]) == ("alice", 1, 1024**2)
    assert quota["bytes"] >= 300_000
    assert "files       1 (no bound)" in place.succeed("quota")

    place.succeed("logout")
    assert place.run("whoami", "--host", place.daemon.host).returncode == 4  # known still, and nobody there


def test_a_password_is_typed_piped_or_in_a_file_and_never_shown(place: Place) -> None:
    place.manage("user", "add", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    place.daemon.start()
    host = f"alice@{place.daemon.host}"
    answers = {b"(yes/no)": b"yes\n", b"Password of alice:": f"{PASSWORD}\n".encode()}
    code, shown = place.type("login", host, answers=answers)
    assert code == 0, shown
    assert PASSWORD not in shown
    assert place.fingerprint() in shown

    # The second prompt comes at once; the server's wait after a wrong one is spent in silence.
    answers = {b"Password of alice:": b"wrong\n", b"\r\nPassword of alice:": f"{PASSWORD}\n".encode()}
    code, shown = place.type("login", host, answers=answers)
    assert code == 0, shown

    done = place.run("whoami")  # there is no keyring here, and no terminal
    assert done.returncode == 4
    assert "there is nothing to log in with" in done.stderr
    (place.directory / "password").write_text(f"{PASSWORD}\n")
    assert "alice" in place.succeed("whoami", TWINPORT_PASSWORD_FILE=str(place.directory / "password"))
    place.succeed("login", host, "--password-stdin", given=f"{PASSWORD}\n")
    done = place.run("login", host, "--password-stdin", given="wrong\n")
    assert done.returncode == 4
    assert "tried: the password" in done.stderr
    kept = [path.read_text() for path in (place.home / ".config/twinport").iterdir()]
    assert all(PASSWORD not in text and "wrong" not in text for text in [*kept, place.daemon.log.read_text()])


def test_a_token_logs_a_machine_in_until_it_is_revoked(place: Place) -> None:
    place.manage("user", "add", "ci", "--no-password")
    token = place.manage("user", "token", "add", "ci", "--label", "backup").strip()
    place.daemon.start()
    fingerprint = place.fingerprint()
    words = ["--token-stdin", "--fingerprint", fingerprint]
    assert place.run("login", f"eve@{place.daemon.host}", *words, given=token).returncode == 4  # it is not hers
    place.succeed("login", place.daemon.host, *words, given=token)
    assert json.loads(place.succeed("whoami", "--json"))["user"] == "ci"
    files = {path.name: path for path in (place.home / ".config/twinport").iterdir()}
    assert token not in files["profiles.json"].read_text()
    assert files["tokens.json"].stat().st_mode & 0o777 == 0o600
    place.succeed("logout")
    assert token not in files["tokens.json"].read_text()

    environment = {"TWINPORT_TOKEN": token, "TWINPORT_HOST": place.daemon.host, "TWINPORT_FINGERPRINT": fingerprint}
    assert "ci" in place.succeed("whoami", **environment)
    listed = place.manage("user", "token", "list", "ci")
    place.manage("user", "token", "revoke", "ci", listed.split()[0])
    wait_for(lambda: place.run("whoami", **environment).returncode != 0)  # the server looks a few times a second
    refused = place.run("whoami", **environment)
    assert refused.returncode == 4
    assert "tried: the token" in refused.stderr
    assert token not in refused.stderr


def test_the_agent_and_the_usual_files_are_found(place: Place) -> None:
    key = place.add_user("alice")
    place.daemon.start()
    options = ["--host", f"alice@{place.daemon.host}", "--fingerprint", place.fingerprint(), "whoami"]
    assert place.run(*options).returncode == 4
    path = f"/tmp/twinport-agent-{os.getpid()}"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        environment = {**os.environ, "SSH_AUTH_SOCK": path}
        is_heard = partial(subprocess.run, ["ssh-add", "-l"], check=False, env=environment, capture_output=True)
        wait_for(lambda: is_heard().returncode != 2)
        subprocess.run(["ssh-add", "-q", str(key)], check=True, env=environment, stderr=subprocess.DEVNULL)
        assert "alice" in place.succeed(*options, SSH_AUTH_SOCK=path)
        assert "alice" in place.succeed(*options, "--key", f"{key}.pub", SSH_AUTH_SOCK=path)
    finally:
        agent.terminate()
        agent.wait()
    (place.home / ".ssh").mkdir()
    key.rename(place.home / ".ssh/id_ed25519")
    assert "alice" in place.succeed(*options)


def test_a_certificate_may_change_when_that_was_announced(place: Place) -> None:
    key = place.add_user("alice")
    place.daemon.start()
    first = place.fingerprint()
    place.succeed("login", f"alice@{place.daemon.host}", "--key", str(key), "--fingerprint", first)
    place.manage("cert", "renew")
    place.daemon.end(signal.SIGTERM)
    place.daemon.start()
    place.succeed("whoami")  # hears of the next one
    place.manage("cert", "renew")
    place.daemon.end(signal.SIGTERM)
    place.daemon.start()
    second = place.fingerprint()
    assert second != first
    done = place.run("whoami")
    assert done.returncode == 0, done.stderr
    assert f"has the new certificate that it had announced: {second}" in done.stderr
    assert place.run("whoami").stderr == ""

    place.manage("cert", "renew", "--now")
    place.daemon.end(signal.SIGTERM)
    place.daemon.start()
    third = place.fingerprint()
    done = place.run("whoami")
    assert done.returncode == 4
    assert "IS NOT THE EXPECTED ONE" in done.stderr
    assert second in done.stderr
    assert third in done.stderr
    place.succeed("login", f"alice@{place.daemon.host}", "--key", str(key), "--fingerprint", third)
    place.succeed("whoami")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_server_that_dies_in_mid_transfer_is_logged_in_to_again(place: Place, direction: str) -> None:
    key = place.add_user("alice")
    # So slowly that there is time to kill it, on a busy machine too.
    place.daemon.close()
    place.daemon = Daemon(place.root, place.directory / "server.log", "--tls=on", "--max-bytes-per-second=50000000")
    place.daemon.reserve()
    place.daemon.start()
    place.succeed("login", f"alice@{place.daemon.host}", "--key", str(key), "--fingerprint", place.fingerprint())
    make_file(place.directory / "file", 200_000_000, seed=3)
    words = ["put", "file", "--to", "alice"]
    if direction == "down":
        place.succeed(*words)
        words = ["get", "alice/file", "-o", "copy"]
    with (place.directory / "client.log").open("wb") as log:
        client = subprocess.Popen(
            [*CLIENT, *words], cwd=place.directory, env=place.environment, stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        where = place.root / ".twinport" if direction == "up" else place.directory
        before = bytes_below(where)
        wait_for(lambda: bytes_below(where) > before + 20_000_000 or client.poll() is not None)
        assert client.poll() is None, "it was too quick"
        place.daemon.end(signal.SIGKILL)
        place.daemon.start()
        assert client.wait(RUN_SECONDS) == 0, (place.directory / "client.log").read_text()
    finally:
        client.kill()
        client.wait()
    assert "connecting again" in (place.directory / "client.log").read_text()
    moved = place.root / "alice/file" if direction == "up" else place.directory / "copy"
    assert sha256_of(moved) == sha256_of(place.directory / "file")


def bytes_below(directory: Path) -> int:
    """What the files below a directory have on disk."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def wait_for(holds: Callable[[], bool]) -> None:
    """Until a condition holds."""
    deadline = time.monotonic() + RUN_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)
