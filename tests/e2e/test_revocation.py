"""``twinportd user`` takes something away from a user while a large transfer of that user runs: real commands, a
rate that makes it last, and a clear end or an undisturbed rest."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Daemon, make_file, sha256_of
from tests.e2e.test_login import CLIENT, PASSWORD, RUN_SECONDS, Place, bytes_below, wait_for

RATE = 3 * 1024 * 1024
FILE_BYTES = 36 * 1024 * 1024
"""Twelve seconds: the administrator's command takes several to start on a busy machine, and must come first."""
BEGUN_BYTES = 2 * 1024 * 1024
NEW_PASSWORD = "another horse battery staple"


UP = ("put", "file", "--to", "alice")
DOWN = ("get", "alice/file", "-o", "copies/file")


class Transfer:
    """``twinport`` with a large file, at ``RATE``, in the background."""

    def __init__(self, place: Place, words: tuple[str, ...], **environment: str) -> None:
        self._grows = place.root / ".twinport" if words is UP else place.directory / "copies"
        self._before = bytes_below(self._grows)
        self._log = place.directory / "client.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*CLIENT, *words],
                cwd=place.directory,
                env={**place.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Transfer:
        wait_for(lambda: bytes_below(self._grows) > self._before + BEGUN_BYTES or self._process.poll() is not None)
        assert self._process.poll() is None, f"it was too quick: {self.text}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def text(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def wait(self, seconds: float = RUN_SECONDS) -> int:
        """Its exit code."""
        code = self._process.wait(seconds)
        assert "Traceback" not in self.text, self.text
        return code


@pytest.fixture
def place(shm_path: Path) -> Iterator[Place]:
    """A server that lets each user send ``RATE``, with alice, who has a password and a key; and a large file."""
    made = Place(shm_path)
    made.daemon = Daemon(
        made.root, made.directory / "server.log", "--tls", "on", "--max-bytes-per-second-per-user", str(RATE)
    )
    made.add_user("alice")
    made.manage("user", "passwd", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    made.daemon.start()
    make_file(made.directory / "file", FILE_BYTES, seed=4)
    (made.directory / "copies").mkdir()
    yield made
    made.daemon.end(signal.SIGTERM)
    made.daemon.assert_no_traceback()


def by_password(place: Place, password: str = PASSWORD) -> dict[str, str]:
    """What a machine sets to log in as alice."""
    file = place.directory / "password-of-alice"
    file.write_text(f"{password}\n")
    return {
        "TWINPORT_HOST": place.daemon.host,
        "TWINPORT_USER": "alice",
        "TWINPORT_FINGERPRINT": place.fingerprint(),
        "TWINPORT_PASSWORD_FILE": str(file),
    }


def pass_word(place: Place) -> None:
    place.manage("user", "passwd", "alice", "--password-stdin", given=f"{NEW_PASSWORD}\n")


def test_another_password_ends_an_upload_that_knows_only_the_old_one(place: Place) -> None:
    environment = by_password(place)
    with Transfer(place, UP, **environment) as upload:
        pass_word(place)
        assert upload.wait() == 4
        assert "LoginFailed" in upload.text
    assert not (place.root / "alice/file").exists()
    environment = by_password(place, NEW_PASSWORD)
    # The failed password is made up for by a second in which none is looked at.
    wait_for(lambda: "[Locked]" not in place.run("whoami", **environment).stderr)
    done = place.run("put", "file", "--to", "alice", **environment)
    assert done.returncode == 0, done.stderr
    assert sha256_of(place.root / "alice/file") == sha256_of(place.directory / "file")


@pytest.mark.parametrize("words", [UP, DOWN], ids=["up", "down"])
def test_another_password_does_not_hinder_who_logs_in_by_key(place: Place, words: tuple[str, ...]) -> None:
    if words is DOWN:
        (place.root / "alice").mkdir()
        shutil.copyfile(place.directory / "file", place.root / "alice/file")
    key = place.directory / "key-alice"
    place.succeed("login", f"alice@{place.daemon.host}", "--key", str(key), "--fingerprint", place.fingerprint())
    with Transfer(place, words) as transfer:
        pass_word(place)
        assert transfer.wait() == 0, transfer.text
        assert "connecting again" in transfer.text
    moved = place.root / "alice/file" if words is UP else place.directory / "copies/file"
    assert sha256_of(moved) == sha256_of(place.directory / "file")


@pytest.mark.parametrize("words", [("disable", "alice"), ("remove", "alice", "--yes")], ids=["disabled", "removed"])
def test_an_upload_of_a_user_who_is_none_any_more_ends(place: Place, words: tuple[str, ...]) -> None:
    with Transfer(place, UP, **by_password(place)) as upload:
        place.manage("user", *words)
        assert upload.wait() in (4, 8), upload.text
        assert "Denied" in upload.text or "LoginFailed" in upload.text
    assert not (place.root / "alice/file").exists()
