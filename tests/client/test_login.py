"""Logging in: every proof, in its order; what ssh-keygen and ssh-agent say of it; agents and servers that misbehave."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import twinport
from twinport.addresses import Address
from twinport.client import Client
from twinport.connector import Security
from twinport.credentials import Credentials, make_login, parse_secret
from twinport.errors import BusyError, DeniedError, LoginError, NotFoundError, TrustError, UsageError
from twinport.ssh_agent import agent_keys
from twinport.ssh_keys import load_key
from twinport_protocol.auth import SshSignature, key_fingerprint, signed_data
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Command, Reply

from tests.client.secure_server import SecureServer, accept_as, blob_of, make_certificate, refuse, signature_of

MakeKey = Callable[..., Path]
KINDS = [("ed25519", 0), ("ecdsa", 256), ("ecdsa", 384), ("ecdsa", 521), ("rsa", 3072)]
SECRET = "correct horse battery staple"


@pytest.fixture
def make_key(tmp_path: Path) -> MakeKey:
    """Makes a key pair with ssh-keygen."""

    def make(
        path: Path | None = None, kind: str = "ed25519", bits: int = 0, passphrase: str = "", form: str = ""
    ) -> Path:
        path = path or tmp_path / f"key-{kind}-{bits}"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)]
        words += ["-b", str(bits)] if bits else []
        words += ["-m", form] if form else []
        subprocess.run(words, check=True)
        return path

    return make


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SecureServer]:
    """Wants a login, and takes none until the test says so."""
    made = SecureServer(make_certificate(tmp_path / "server.pem"), {"file": b"bytes"})
    made.options["login"] = "required"
    made.check = lambda command, nonce: refuse(command)
    yield made
    made.close()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real ssh-agent, without keys."""
    path = f"/tmp/twinport-agent-{os.getpid()}-{threading.get_ident()}"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    while not os.path.exists(path):
        assert process.poll() is None
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    yield path
    process.terminate()
    process.wait()


def add_to_agent(path: Path) -> None:
    """As ``ssh-add`` does."""
    subprocess.run(["ssh-add", "-q", str(path)], check=True, stderr=subprocess.DEVNULL)


def verify_as_openssh(server: SecureServer, command: Command, public: Path, directory: Path) -> None:
    """Let ssh-keygen judge what a login was signed with."""
    allowed = directory / "allowed"
    allowed.write_text(f'alice namespaces="auth@twinport" {public.read_text()}')
    signature = directory / "signature"
    signature.write_text(signature_of(command).to_armor())
    words = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", "alice", "-n", "auth@twinport"]
    words += ["-s", str(signature)]
    done = subprocess.run(words, check=False, input=server.key_message("alice"), capture_output=True)
    assert done.returncode == 0, done.stderr
    other = subprocess.run(words, check=False, input=server.key_message("bob"), capture_output=True)
    assert other.returncode != 0


def connect(server: SecureServer, **options: object) -> Client:
    """Through the library's front door."""
    settings: dict[str, object] = {"fingerprint": server.certificate.fingerprint.hex(), **options}
    return twinport.connect("127.0.0.1", server.port, **settings)  # type: ignore[arg-type]


def takes_key(server: SecureServer, path: Path) -> list[Command]:
    """From now on a key logs in; the commands that did."""
    blob = blob_of(Path(f"{path}.pub").read_text())
    taken: list[Command] = []

    def check(command: Command, nonce: str) -> Reply:
        if command.words != ("key",) or signature_of(command).public_key != blob:
            return refuse(command)
        taken.append(command)
        return accept_as(command, command.options["user"])

    server.check = check
    return taken


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_ssh_keygen_accepts_what_a_key_file_signs(
    server: SecureServer, make_key: MakeKey, tmp_path: Path, kind: str, bits: int
) -> None:
    key = make_key(kind=kind, bits=bits)
    taken = takes_key(server, key)
    with connect(server, user="alice", key=key) as client:
        assert (client.identity.user, client.identity.home) == ("alice", "alice")
        assert [entry.key for entry in client.list()] == ["file"]
    verify_as_openssh(server, taken[0], Path(f"{key}.pub"), tmp_path)


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_ssh_keygen_accepts_what_the_agent_signs(
    server: SecureServer, make_key: MakeKey, agent: str, tmp_path: Path, kind: str, bits: int
) -> None:
    key = make_key(kind=kind, bits=bits)
    add_to_agent(key)
    key.unlink()
    taken = takes_key(server, key)
    for options in ({}, {"key": f"{key}.pub"}):  # found by itself, and named by its public half
        with connect(server, user="alice", **options) as client:
            assert client.identity.user == "alice"
    verify_as_openssh(server, taken[-1], Path(f"{key}.pub"), tmp_path)


def test_what_ssh_keygen_signs_is_the_same_container(make_key: MakeKey, tmp_path: Path) -> None:
    key = make_key()
    message = tmp_path / "message"
    message.write_bytes(b"twinport login 1\n")
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "auth@twinport", str(message)],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    theirs = SshSignature.from_armor(Path(f"{message}.sig").read_text())
    algorithm, ours = load_key(str(key)).sign(signed_data(message.read_bytes()))
    assert (theirs.algorithm, theirs.signature) == (algorithm, ours)  # ed25519 has one signature of one message


def test_keys_are_tried_in_their_order_and_none_twice(
    server: SecureServer, make_key: MakeKey, agent: str, tmp_path: Path
) -> None:
    home = Path(os.environ["HOME"])
    in_agent = make_key(tmp_path / "agent-key")
    first = make_key(home / ".ssh/id_ed25519")
    second = make_key(home / ".ssh/id_ecdsa", kind="ecdsa")
    last = make_key(home / ".ssh/id_rsa", kind="rsa", bits=3072)
    add_to_agent(in_agent)
    add_to_agent(first)
    asked: list[bytes] = []
    wanted = blob_of(Path(f"{last}.pub").read_text())

    def check(command: Command, nonce: str) -> Reply:
        asked.append(signature_of(command).public_key)
        return accept_as(command, "alice") if asked[-1] == wanted else refuse(command)

    server.check = check
    connect(server, user="alice").close()
    assert asked == [blob_of(Path(f"{path}.pub").read_text()) for path in (in_agent, first, second, last)]


def test_a_refusal_lists_what_was_tried(server: SecureServer, make_key: MakeKey, agent: str) -> None:
    home = Path(os.environ["HOME"])
    make_key(home / ".ssh/id_ed25519", passphrase=SECRET)
    key = make_key()
    add_to_agent(key)
    with pytest.raises(LoginError) as caught:
        connect(server, user="alice")
    fingerprint = key_fingerprint(blob_of(Path(f"{key}.pub").read_text()))
    assert f"agent key ssh-ed25519 {fingerprint}" in caught.value.message
    assert "id_ed25519 has a passphrase, and there is no terminal to ask for it" in caught.value.message
    assert caught.value.exit_code == 4

    with pytest.raises(LoginError, match="refused the login as alice; tried: the password") as refused:
        connect(server, user="alice", password=SECRET)
    with pytest.raises(LoginError, match="refused the login; tried: the token"):
        connect(server, token=f"tp_{SECRET}")
    assert SECRET not in str(refused.value)


def test_nothing_to_log_in_with(server: SecureServer) -> None:
    with pytest.raises(LoginError, match="there is nothing to log in with; give --key FILE") as caught:
        connect(server)
    assert caught.value.code == "LoginRequired"


@pytest.mark.parametrize("form", ["", "PEM", "PKCS8"])
def test_a_passphrase_is_asked_for_until_it_is_right(make_key: MakeKey, form: str) -> None:
    key = make_key(kind="rsa", bits=3072, passphrase=SECRET, form=form)
    answers = iter(["wrong", SECRET])
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return next(answers)

    assert load_key(str(key), ask).public_key == blob_of(Path(f"{key}.pub").read_text())
    assert prompts == [f"Passphrase of {key}: "] * 2
    with pytest.raises(LoginError, match="stays locked: wrong passphrase"):
        load_key(str(key), lambda prompt: "wrong")
    with pytest.raises(LoginError, match="load it into the SSH agent"):
        load_key(str(key))


def test_what_is_no_key_or_a_weak_one_is_told(make_key: MakeKey, tmp_path: Path) -> None:
    with pytest.raises(LoginError, match="has 2048 bits, at least 3072 are needed"):
        load_key(str(make_key(kind="rsa", bits=2048)))
    garbage = tmp_path / "garbage"
    for content in (b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", b"\xff" * 100, b"x" * 100_000):
        garbage.write_bytes(content)
        with pytest.raises(LoginError, match="no SSH"):
            load_key(str(garbage))
    with pytest.raises(NotFoundError, match="cannot read the key"):
        load_key(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="is no user name"):
        make_login(Credentials(user="al ice"))


def test_a_public_key_without_its_agent(server: SecureServer, make_key: MakeKey, agent: str) -> None:
    key = make_key()
    with pytest.raises(LoginError, match="the SSH agent does not hold"):
        connect(server, user="alice", key=f"{key}.pub")
    os.environ.pop("SSH_AUTH_SOCK")
    with pytest.raises(LoginError, match="there is no SSH agent to sign with it"):
        connect(server, user="alice", key=f"{key}.pub")


class FalseAgent:
    """Answers each request with the next of some bytes."""

    def __init__(self, path: str, answers: list[bytes]) -> None:
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    def close(self) -> None:
        """After all answers were given."""
        self._thread.join()
        self._listener.close()


def frame(kind: int, body: bytes = b"") -> bytes:
    """A message of the agent's protocol."""
    return struct.pack("!IB", len(body) + 1, kind) + body


def text(value: bytes) -> bytes:
    """An SSH string."""
    return struct.pack("!I", len(value)) + value


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed the connection in the middle"),
        (b"\0\0\0\x05\x0c", "closed the connection in the middle"),
        (b"\xff\xff\xff\xff", "a message of an impossible length"),
        (b"\0\0\0\0", "a message of an impossible length"),
        (frame(5), "the SSH agent refused"),
        (frame(14), "an answer to something else"),
        (frame(12, b"\0\0\0\x02" + text(b"x") + text(b"y")), "a list that is cut short"),
    ],
)
def test_an_agent_that_lies_or_dies(tmp_path: Path, answer: bytes, reason: str) -> None:
    path = str(tmp_path / "agent")
    liar = FalseAgent(path, [answer])
    try:
        with pytest.raises(LoginError, match=reason):
            agent_keys(path)
    finally:
        liar.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (frame(14, text(text(b"ssh-rsa") + text(b"sig"))), "a signature of another algorithm"),
        (frame(14, text(b"junk")), "a signature that is none"),
        (frame(5), "the SSH agent refused"),
    ],
)
def test_an_agent_that_signs_badly(
    server: SecureServer, make_key: MakeKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, reason: str
) -> None:
    blob = blob_of(Path(f"{make_key()}.pub").read_text())
    path = str(tmp_path / "agent")
    liar = FalseAgent(path, [frame(12, b"\0\0\0\x01" + text(blob) + text(b"comment")), answer])
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    try:
        with pytest.raises(LoginError, match=reason):
            connect(server, user="alice")
    finally:
        liar.close()


def test_no_agent_where_one_should_be(server: SecureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nothing"))
    with pytest.raises(LoginError, match=r"no SSH agent at .*nothing: No such file"):
        connect(server, user="alice")


def test_a_lock_and_a_queue_are_told_with_their_time(server: SecureServer) -> None:
    server.check = lambda command, nonce: refuse(command, ErrorCode.LOCKED, 17)
    with pytest.raises(LoginError, match="try again in 17 s, or log in with an SSH key") as caught:
        connect(server, user="alice", password="x")
    assert caught.value.code == "Locked"

    answers = iter([ErrorCode.BUSY, None])

    def check(command: Command, nonce: str) -> Reply:
        code = next(answers)
        return accept_as(command, "alice") if code is None else refuse(command, code, 0)

    server.check = check
    with connect(server, user="alice", password="x") as client:
        assert client.identity.user == "alice"


def test_a_second_password_waits_its_turn(server: SecureServer) -> None:
    codes = iter([ErrorCode.LOGIN_FAILED, ErrorCode.LOCKED, None])
    given: list[str] = []

    def check(command: Command, nonce: str) -> Reply:
        given.append(command.options["password"])
        code = next(codes)
        return accept_as(command, "alice") if code is None else refuse(command, code, 0)

    server.check = check
    answers = iter(["wrong", "right"])
    login = make_login(Credentials(user="alice", ask_secret=lambda prompt: next(answers)))
    security = Security(fingerprint=server.certificate.fingerprint)
    Client(Address("127.0.0.1", server.port), security=security, login=login).close()
    assert given == ["wrong", "right", "right"]


def test_an_agent_with_many_keys_leaves_room_for_a_password(
    server: SecureServer, make_key: MakeKey, agent: str, tmp_path: Path
) -> None:
    for number in range(7):
        add_to_agent(make_key(tmp_path / f"key-{number}"))
    methods: list[str] = []

    def check(command: Command, nonce: str) -> Reply:
        methods.append(command.words[0])
        return accept_as(command, "alice") if methods.count("password") == 3 else refuse(command)

    server.check = check
    login = make_login(Credentials(user="alice", ask_secret=lambda prompt: "x"))
    security = Security(fingerprint=server.certificate.fingerprint)
    Client(Address("127.0.0.1", server.port), security=security, login=login).close()
    assert methods == ["key"] * 5 + ["password"] * 3


def test_a_server_without_accounts_is_the_wrong_one_for_somebody(server: SecureServer) -> None:
    del server.options["login"]
    with pytest.raises(LoginError, match="has no accounts"):
        connect(server, user="alice", password="x")
    with connect(server) as client:
        assert client.identity.user is None
    assert all(command.verb.value != "LOGIN" for command in server.commands)


def test_strangers_stay_strangers_where_both_are_welcome(server: SecureServer) -> None:
    server.options["login"] = "offered"
    server.check = lambda command, nonce: accept_as(command, "alice")
    with connect(server) as client:
        assert client.identity.user is None
    with connect(server, user="alice", password=SECRET) as client:
        assert client.identity.user == "alice"


def test_no_login_over_a_readable_line(server: SecureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.takes_plaintext = True
    monkeypatch.setattr("twinport.connector.is_loopback", lambda host: False)
    with pytest.raises(LoginError, match=r"no login to .* without TLS"):
        twinport.connect("127.0.0.1", server.port, plaintext=True, user="alice", password=SECRET)
    assert server.commands == []


def test_whoever_listens_on_this_machine_gets_no_proof_in_plaintext(server: SecureServer) -> None:
    server.takes_plaintext = True
    server.check = lambda command, nonce: accept_as(command, "alice")
    address = Address("127.0.0.1", server.port)
    for wish in ("required", "offered"):
        server.options["login"] = wish
        for options in ({"user": "alice", "password": SECRET}, {"token": f"tp_{SECRET}"}):
            with pytest.raises(TrustError, match="is unknown"):
                twinport.connect("127.0.0.1", server.port, **options)  # type: ignore[arg-type]
    assert server.commands == []
    # Said in so many words, it goes in plaintext; with a certificate that is believed, under TLS.
    with twinport.connect("127.0.0.1", server.port, tls=False, user="alice", password=SECRET) as client:
        assert (client.identity.user, client.identity.tls_version) == ("alice", None)
    login = make_login(Credentials(user="alice", password=SECRET))
    with Client(address, security=Security(confirm=lambda question: True), login=login) as client:
        assert (client.identity.user, client.identity.tls_version) == ("alice", "TLSv1.3")


def test_a_lost_connection_logs_in_again_with_what_worked(server: SecureServer) -> None:
    given: list[str] = []

    def check(command: Command, nonce: str) -> Reply:
        given.append(command.options["password"])
        return accept_as(command, "alice") if given[-1] == "right" else refuse(command)

    server.check = check
    asked: list[str] = []
    answers = iter(["wrong", "right"])

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(answers)

    client = Client(
        Address("127.0.0.1", server.port),
        security=Security(fingerprint=server.certificate.fingerprint),
        login=make_login(Credentials(user="alice", ask_secret=ask)),
    )
    with client:
        cut_all(server)
        client.ping()
        assert (asked, given) == (["Password of alice: "] * 2, ["wrong", "right", "right"])
        server.check = lambda command, nonce: refuse(command, ErrorCode.LOCKED, 1)
        # What is worth waiting for in mid transfer.
        with pytest.raises(BusyError, match="try again in 1 s"):
            client._current_session(True)


def cut_all(server: SecureServer) -> None:
    """End all connections, those that have ended already aside."""
    for connection in server._connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def test_a_login_that_is_cut_while_somebody_types_goes_on(server: SecureServer) -> None:
    given: list[str] = []

    def check(command: Command, nonce: str) -> Reply:
        given.append(command.options["password"])
        return accept_as(command, "alice")

    server.check = check

    def ask(prompt: str) -> str:
        cut_all(server)  # the server's deadline passed
        return SECRET

    with Client(
        Address("127.0.0.1", server.port),
        security=Security(fingerprint=server.certificate.fingerprint),
        login=make_login(Credentials(user="alice", ask_secret=ask)),
    ) as client:
        assert client.identity.user == "alice"
    assert given == [SECRET]


def test_a_denial_names_the_folder_that_is_ones_own(server: SecureServer) -> None:
    server.check = lambda command, nonce: accept_as(command, "alice")
    with connect(server, user="alice", password=SECRET) as client, pytest.raises(DeniedError) as caught:
        client.mkdir("somewhere/else")
    assert caught.value.message.endswith("; your folder is alice/")


@pytest.mark.parametrize("data", [b"", b"\n", b"a\nb\n", b"\xff\n", b"x" * 2000])
def test_a_secret_is_one_line(data: bytes) -> None:
    with pytest.raises(UsageError, match="must hold one line"):
        parse_secret(data, "stdin")
    assert parse_secret(b" spaces count \r\n", "stdin") == " spaces count "


def test_no_secret_shows_itself() -> None:
    credentials = Credentials(user="alice", password=SECRET, token=SECRET)
    assert SECRET not in repr(credentials)
