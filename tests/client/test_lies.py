"""A server that lies: nothing outside the target is touched, and no byte is accepted that does not match."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twinport import errors
from twinport.client import Client
from twinport.engine import Policy
from twinport.partials import partial_name
from twinport.remote_names import PAGE_ENTRIES
from twinport.target_tree import safe_name
from twinport_protocol.channel import ChannelServer
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import LAST, FrameType, Header
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.client.conftest import Connect, RunCommand
from tests.client.lying_server import LyingServer

CANARY = b"do not touch"
LARGE = os.urandom(2 * MIN_SEGMENT_BYTES + 5)
MEDIUM = os.urandom(300_000)
SMALL = os.urandom(1000)
TOKEN = "tp_" + "0" * 16 + "_" + "a" * 43


@pytest.fixture
def liar() -> Iterator[LyingServer]:
    """A lying server."""
    server = LyingServer({"small": SMALL, "medium": MEDIUM, "large": LARGE})
    yield server
    server.close()


@pytest.fixture
def victim(liar: LyingServer, connect: Connect) -> Client:
    """Its client, with little patience."""
    return connect(liar, policy=Policy(first_wait_seconds=0.0, longest_wait_seconds=0.01), patience_seconds=2.0)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A target directory in a directory whose other content must not change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/canary").write_bytes(CANARY)
    (tmp_path / "here/target").mkdir(parents=True)
    yield tmp_path / "here/target"
    assert sorted(os.listdir(tmp_path)) == ["here", "outside"]
    assert os.listdir(tmp_path / "here") == ["target"]
    assert os.listdir(tmp_path / "outside") == ["canary"]
    assert (tmp_path / "outside/canary").read_bytes() == CANARY
    assert (tmp_path / "outside/canary").stat().st_nlink <= 2


EVIL_NAMES = [
    "../canary",
    "tree/../../canary",
    "tree/..",
    "/etc/passwd",
    "tree//x",
    "tree/./x",
    ".",
    "..",
    " ",
    "tree/\x7f",
    "other/file",
    "treehouse",
    ".twinport/x",
    "tree/" + "x" * 256,
]


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_listed_name_cannot_lead_outside(liar: LyingServer, victim: Client, target: Path, name: str) -> None:
    liar.files = {name: b"evil", "tree/good": b"good"}
    # Listings are ordered; a liar who keeps to that gets further.
    liar.listed = sorted([(name, "f"), ("tree/good", "f")], key=lambda item: item[0].encode())
    report = victim.get("tree", target, recursive=True, check=False)
    assert {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} <= {"tree/good"}
    assert [type(failure.error) for failure in report.failures] == [errors.IntegrityError]


@pytest.mark.parametrize("name", ["../dir", "/tmp/twinport-evil", "tree/../../dir"])
def test_a_listed_directory_cannot_lead_outside(liar: LyingServer, victim: Client, target: Path, name: str) -> None:
    liar.listed = [(name, "d")]
    report = victim.get("tree", target, recursive=True, check=False)
    assert [type(failure.error) for failure in report.failures] == [errors.IntegrityError]
    assert os.listdir(target) == []


def test_a_link_in_the_target_is_not_followed(liar: LyingServer, victim: Client, target: Path) -> None:
    (target / "tree").mkdir()
    (target / "tree/link").symlink_to("../../../outside")
    liar.files = {"tree/link/canary": b"evil", "tree/link/new": b"evil", "tree/good": b"good"}
    report = victim.get("tree", target, recursive=True, check=False)
    assert [type(failure.error) for failure in report.failures] == [errors.DeniedError] * 2
    assert "symbolic link" in report.failures[0].error.message
    assert (target / "tree/good").read_bytes() == b"good"


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_a_link_under_the_targets_name_is_replaced_not_followed(
    liar: LyingServer, victim: Client, target: Path, name: str
) -> None:
    (target / name).symlink_to("../../outside/canary")
    victim.get(name, target)
    assert not (target / name).is_symlink()
    assert (target / name).read_bytes() == liar.files[name]


@pytest.mark.parametrize("name", ["small", "medium", "large"])
@pytest.mark.parametrize("kind", ["symlink", "hard link", "directory", "pipe"])
def test_a_partial_that_is_no_partial_is_refused(victim: Client, target: Path, name: str, kind: str) -> None:
    partial = target / partial_name(name)
    if kind == "symlink":
        partial.symlink_to("../../outside/canary")
    elif kind == "hard link":
        partial.hardlink_to(target / "../../outside/canary")
    elif kind == "directory":
        partial.mkdir()
    else:
        os.mkfifo(partial)
    with pytest.raises(errors.TwinportError) as caught:
        victim.get(name, target)
    assert isinstance(caught.value, (errors.DeniedError, errors.SourceError))
    assert not (target / name).exists()
    if kind == "hard link":
        partial.unlink()


def test_a_directory_under_the_targets_name_is_not_replaced(victim: Client, target: Path) -> None:
    (target / "small").mkdir()
    with pytest.raises(errors.TwinportError, match="cannot write"):
        victim.get("small", target)
    assert (target / "small").is_dir()


@pytest.mark.parametrize("name", ["small", "medium", "large"])
@pytest.mark.parametrize("lie", ["bytes", "root", "bytes of a shorter file"])
def test_bytes_that_do_not_match_are_never_accepted(
    liar: LyingServer, victim: Client, target: Path, monkeypatch: pytest.MonkeyPatch, name: str, lie: str
) -> None:
    honest_root, honest_manifest = liar.root(name), liar.manifest(name)
    if lie == "root":
        monkeypatch.setattr(liar, "root", lambda name: bytes(32))
    else:
        monkeypatch.setattr(liar, "root", lambda name: honest_root)
        monkeypatch.setattr(liar, "manifest", lambda name: honest_manifest)
        data = liar.files[name]
        liar.files[name] = data[:-1] + bytes([data[-1] ^ 1]) if lie == "bytes" else data[:-1]
    with pytest.raises(errors.IntegrityError) as caught:
        victim.get(name, target)
    assert caught.value.exit_code == 7
    assert name not in os.listdir(target)


@pytest.mark.parametrize("manifest", [b"", bytes(32), bytes(96), bytes(range(96)), bytes(128)])
def test_a_manifest_that_does_not_add_up_is_refused(
    liar: LyingServer, victim: Client, target: Path, monkeypatch: pytest.MonkeyPatch, manifest: bytes
) -> None:
    monkeypatch.setattr(liar, "manifest", lambda name: manifest)
    with pytest.raises(errors.IntegrityError, match="manifest does not add up"):
        victim.get("large", target)
    with pytest.raises(errors.IntegrityError, match="does not add up"):
        victim.manifest("large")
    assert os.listdir(target) == []


def more_than_asked(wire: ChannelServer, get: Header, data: bytes) -> bytes:
    """One byte too many, in the one frame."""
    header = Header(FrameType.SEG, LAST, 0, get.attachment, get.segment, get.offset, get.length + 1)
    return header.encode() + data + b"x"


def elsewhere(wire: ChannelServer, get: Header, data: bytes) -> bytes:
    """The right number of bytes for another place."""
    return Header(FrameType.SEG, LAST, 0, get.attachment, get.segment, get.offset + 8, get.length).encode() + data


def another_segment(wire: ChannelServer, get: Header, data: bytes) -> bytes:
    """Another segment than was asked for."""
    return Header(FrameType.SEG, LAST, 0, get.attachment, get.segment + 1, get.offset, get.length).encode() + data


def fewer_than_asked(wire: ChannelServer, get: Header, data: bytes) -> bytes:
    """The end too early."""
    return Header(FrameType.SEG, LAST, 0, get.attachment, get.segment, get.offset, len(data) - 1).encode() + data[:-1]


def unasked(wire: ChannelServer, get: Header, data: bytes) -> bytes:
    """An answer to nothing."""
    return Header(FrameType.ACK, 0, 0, get.attachment, get.segment, 0, 0).encode()


@pytest.mark.parametrize("frames", [more_than_asked, elsewhere, another_segment, fewer_than_asked, unasked])
@pytest.mark.parametrize("name", ["small", "large"])
def test_frames_that_do_not_fit_what_was_asked_end_the_channel(
    liar: LyingServer,
    victim: Client,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    frames: Callable[[ChannelServer, Header, bytes], bytes],
    name: str,
) -> None:
    def segment(wire: ChannelServer, get: Header, asked: str) -> bytes:
        start = get.segment * MIN_SEGMENT_BYTES + get.offset
        return frames(wire, get, liar.files[asked][start : start + get.length])

    monkeypatch.setattr(liar, "segment", segment)
    with pytest.raises(errors.NetworkError):
        victim.get(name, target)
    assert name not in os.listdir(target)


@pytest.mark.parametrize(
    "facts",
    [
        {"size": str(2**62), "root": "00" * 32},
        {"size": "-1", "root": "00" * 32},
        {"size": "1", "root": "00"},
        {"size": "1", "root": "zz" * 32},
        {"size": "1"},
        {"size": "1", "root": "00" * 32, "mtime": "never"},
    ],
)
def test_senseless_facts_about_a_file_fail_it(
    liar: LyingServer, victim: Client, target: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str]
) -> None:
    monkeypatch.setattr(liar, "facts", lambda name: facts)
    with pytest.raises(errors.TwinportError) as caught:
        victim.get("small", target)
    assert isinstance(caught.value, (errors.ServerProtocolError, errors.SpaceError, errors.IntegrityError))
    assert [name for name in os.listdir(target) if not name.startswith(".")] == []


def test_an_absurd_size_allocates_nothing(
    liar: LyingServer, victim: Client, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = liar.facts("medium")
    monkeypatch.setattr(liar, "facts", lambda name: {**honest, "size": str(MIN_SEGMENT_BYTES * 10**9)})
    monkeypatch.setattr(liar, "manifest", lambda name: bytes(32))
    with pytest.raises(errors.IntegrityError):
        victim.get("medium", target)
    assert sum(path.stat().st_size for path in target.iterdir()) < 10**6


def test_a_listing_that_runs_in_circles_ends(liar: LyingServer, victim: Client) -> None:
    liar.more = "1"
    with pytest.raises(errors.ServerProtocolError, match="runs in circles"):
        list(victim.list())


def test_a_page_of_more_entries_than_were_asked_for_is_refused(liar: LyingServer, victim: Client) -> None:
    liar.listed = [(f"{number:09}", "f") for number in range(PAGE_ENTRIES + 1)]
    with pytest.raises(errors.ServerProtocolError, match="more entries than were asked for"):
        list(victim.list())


@pytest.mark.parametrize("listed", [[("x", "d")], [("y", "f")], [("x/a/b", "f")], [("x/", "d")]])
def test_a_listing_of_something_else_removes_nothing(
    liar: LyingServer, victim: Client, monkeypatch: pytest.MonkeyPatch, listed: list[tuple[str, str]]
) -> None:
    liar.listed = listed
    verbs: list[Verb] = []
    honest = liar.answer

    def answer(command: Command) -> list[Reply]:
        verbs.append(command.verb)
        return honest(command)

    monkeypatch.setattr(liar, "answer", answer)
    with pytest.raises(errors.ServerProtocolError, match="names something else"):
        victim.delete("x", recursive=True)
    assert verbs == [Verb.LIST]


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"OK 3 agent=x\n",
        b"OK 2 data-port=99999\n",
        b"OK 2 data-port=x\n",
        b"OK 2 frames=-1\n",
        b"OK 2 frames=0\n",
        b"OK 2 window-commands=0\n",
        b"\xff\xff\n",
        b"x" * 100_000,
        b"",
    ],
)
def test_what_is_no_twinportd_is_named_so(liar: LyingServer, connect: Connect, greeting: bytes) -> None:
    liar.greeting = greeting
    if not greeting:
        liar.close()
    with pytest.raises(errors.NetworkError) as caught:
        connect(liar)
    assert "twinportd" in caught.value.message


def test_a_login_that_is_ended_again_and_again_is_not_tried_for_ever(
    liar: LyingServer, victim: Client, target: Path
) -> None:
    honest, asked = liar.answer, []

    def answer(command: Command) -> list[Reply]:
        if command.verb is not Verb.DOWNLOAD:
            return honest(command)
        asked.append(command)
        return [Reply(command.id, ReplyKind.ERROR, code=ErrorCode.LOGIN_REQUIRED)]

    liar.answer = answer  # type: ignore[method-assign]
    with pytest.raises(errors.LoginError) as caught:
        victim.get("small", target)
    assert caught.value.code == "LoginRequired"
    assert len(asked) == 2, "once more with a new login, and then never again while nothing moves"


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        (b"0 ERROR Busy retry=3 the server is at its limit\n", errors.BusyError),
        (b"ERROR LoginRequired log in first\n", errors.LoginError),
        (b"0 ERROR TlsRequired this needs TLS\n", errors.LoginError),
        (b"0 ERROR ShuttingDown the server is stopping\n", errors.NetworkError),
    ],
)
def test_a_refused_greeting_says_why(
    liar: LyingServer, connect: Connect, greeting: bytes, kind: type[errors.TwinportError]
) -> None:
    liar.greeting = greeting
    with pytest.raises(kind):
        connect(liar, tls=False)


@pytest.mark.parametrize("name", ["CON", "nul.txt", "a:b", "a\\b", "dir/COM1.log", "dot."])
def test_names_that_windows_does_not_have_are_refused_there(name: str) -> None:
    assert safe_name(name, "linux") == name
    with pytest.raises(errors.DeniedError, match="Windows has no such file name"):
        safe_name(name, "win32")


@pytest.mark.parametrize(
    "lie",
    [{"user": "bob\x1b[2J"}, {"user": "bob\nroot"}, {"user": ""}, {"user": "bob", "home": "a\x1b]0;x\x07"},
     {"user": "bob", "home": "a/../.."}],
)  # fmt: skip
@pytest.mark.parametrize("command", ["whoami", "quota", "login"])
def test_who_one_is_cannot_be_a_command_to_the_terminal(
    liar: LyingServer, run_command: RunCommand, own_settings: Path, command: str, lie: dict[str, str]
) -> None:
    liar.login = lie
    words = ("--no-tls", "--host", f"127.0.0.1:{liar.port}", command)
    code, out, err = run_command(*words, TWINPORT_TOKEN=TOKEN)
    assert (code, out) == (5, "")
    assert "makes no sense" in err
    assert err.rstrip("\n").isprintable()
    assert not (own_settings / "profiles.json").exists()


def test_a_home_with_strange_letters_is_shown_escaped(liar: LyingServer, run_command: RunCommand) -> None:
    liar.login = {"user": "bob", "home": "people/\u202egnp"}
    code, out, _ = run_command("--no-tls", "--host", f"127.0.0.1:{liar.port}", "whoami", TWINPORT_TOKEN=TOKEN)
    assert code == 0
    assert "home         people/\\u202egnp/\n" in out
