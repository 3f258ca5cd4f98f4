"""Whom the client believes: pins, known servers, authorities, the question; nothing is sent to anybody else."""

from __future__ import annotations

import os
import pty
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import twinport
from twinport.addresses import Address
from twinport.client import Client
from twinport.connector import Security, TlsMode, is_loopback
from twinport.errors import DeniedError, LoginError, NetworkError, TrustError, UsageError
from twinport.known_servers import KnownServer, KnownServers

from tests.client.lying_server import LyingServer
from tests.client.secure_server import Authority, Certificate, SecureServer, make_certificate
from tests.client.servers import ServerProcess

COMMAND = [sys.executable, "-c", "from twinport.cli import main; main()"]
FILES = {"small": b"hello", "large": bytes(range(256)) * 40_000}  # two segments: its manifest is fetched over a channel
RUN_SECONDS = 60


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """The server's own."""
    return make_certificate(tmp_path / "server.pem")


@pytest.fixture
def other(tmp_path: Path) -> Certificate:
    """Somebody else's."""
    return make_certificate(tmp_path / "other.pem")


@pytest.fixture
def server(certificate: Certificate) -> Iterator[SecureServer]:
    """TLS only."""
    made = SecureServer(certificate, FILES)
    yield made
    made.close()


def connect(server: SecureServer, **options: object) -> Client:
    """Through the library's front door; under TLS if nothing else is said."""
    settings: dict[str, object] = {"tls": True, "patience_seconds": 30.0, **options}
    return twinport.connect("127.0.0.1", server.port, **settings)  # type: ignore[arg-type]


def test_a_pinned_server_serves_everything_under_tls(server: SecureServer, tmp_path: Path) -> None:
    with connect(server, fingerprint=server.certificate.fingerprint.hex().upper()) as client:
        assert client.identity.certificate == server.certificate.fingerprint
        assert client.identity.tls_version == "TLSv1.3"
        client.get("small", tmp_path)
        client.get("large", tmp_path / "copy", exact=True)
        assert client.manifest("large").file_bytes == len(FILES["large"])
    assert (tmp_path / "small").read_bytes() == FILES["small"]
    assert (tmp_path / "copy").read_bytes() == FILES["large"]


def test_another_certificate_than_the_pinned_one_gets_nothing(server: SecureServer, other: Certificate) -> None:
    with pytest.raises(TrustError, match="IS NOT THE EXPECTED ONE") as caught:
        connect(server, fingerprint=other.fingerprint.hex())
    assert caught.value.exit_code == 4
    assert caught.value.code == "CertificateChanged"
    assert other.fingerprint.hex() in caught.value.message
    assert server.certificate.fingerprint.hex() in caught.value.message
    assert server.application_bytes == 0


def test_an_unknown_server_is_refused_with_the_command_that_trusts_it(server: SecureServer) -> None:
    with pytest.raises(TrustError) as caught:
        connect(server)
    expected = f"twinport login 127.0.0.1:{server.port} --fingerprint {server.certificate.fingerprint.hex()}"
    assert caught.value.message.endswith(expected)
    assert caught.value.code == "UnknownServer"
    with pytest.raises(TrustError, match=f"twinport login alice@127.0.0.1:{server.port} --fingerprint "):
        connect(server, user="alice", password="x")
    assert server.application_bytes == 0


def test_an_authority_may_vouch_for_the_server(server: SecureServer, tmp_path: Path) -> None:
    authority = Authority()
    ca_file = authority.write(tmp_path / "ca.pem")
    server.certificate = server.channel_certificate = authority.issue(tmp_path / "issued.pem")
    with connect(server, ca_file=ca_file) as client:
        client.get("small", tmp_path)
        assert client.identity.certificate == server.certificate.fingerprint
    assert KnownServers().find(Address("127.0.0.1", server.port)) is None


def test_where_an_authority_vouched_nobody_is_asked_about_a_certificate_without_one(
    server: SecureServer, other: Certificate, tmp_path: Path
) -> None:
    authority = Authority()
    ca_file = authority.write(tmp_path / "ca.pem")
    address = Address("127.0.0.1", server.port)
    server.certificate = server.channel_certificate = authority.issue(tmp_path / "issued.pem")
    connect(server, ca_file=ca_file).close()
    server.certificate = server.channel_certificate = authority.issue(tmp_path / "renewed.pem")
    connect(server, ca_file=ca_file).close()
    before = server.application_bytes

    def confirm(question: str) -> bool:
        pytest.fail("asked")

    server.certificate = server.channel_certificate = other
    unmet = KnownServers(tmp_path / "unmet.json")
    # Remembered by itself, TLS being the way there from now on; and by a profile alone.
    for security in (
        Security(confirm=confirm),
        Security(TlsMode.ALWAYS, known=unmet, expects_authority=True, confirm=confirm),
    ):
        with pytest.raises(TrustError, match=f"none does for {other.fingerprint.hex()}") as caught:
            Client(address, security=security)
        assert caught.value.code == "CertificateChanged"
    assert server.application_bytes == before
    # The way out that it names.
    KnownServers().replace(address, other.fingerprint)
    connect(server).close()
    KnownServers().vouch_for(address)
    assert KnownServers().find(address) == KnownServer(other.fingerprint)


@pytest.mark.parametrize(
    ("hosts", "days", "reason"),
    [(("192.0.2.1",), 2, "IP address mismatch"), (("127.0.0.1",), -1, "certificate has expired")],
)
def test_an_authority_that_vouches_for_something_else_does_not_help(
    server: SecureServer, tmp_path: Path, hosts: tuple[str, ...], days: int, reason: str
) -> None:
    authority = Authority()
    ca_file = authority.write(tmp_path / "ca.pem")
    server.certificate = authority.issue(tmp_path / "issued.pem", hosts, days)
    with pytest.raises(TrustError, match=reason) as caught:
        connect(server, ca_file=ca_file)
    assert server.certificate.fingerprint.hex() in caught.value.message
    assert server.application_bytes == 0


def test_an_authority_that_was_not_named_does_not_count(server: SecureServer, tmp_path: Path) -> None:
    ca_file = Authority().write(tmp_path / "ca.pem")
    with pytest.raises(TrustError, match=r"is refused: self.signed certificate"):
        connect(server, ca_file=ca_file)
    with pytest.raises(UsageError, match="no certificate in it"):
        connect(server, ca_file=make_file(tmp_path / "empty"))
    with pytest.raises(UsageError, match="No such file"):
        connect(server, ca_file=tmp_path / "missing")


def make_file(path: Path) -> Path:
    """An empty one."""
    path.touch()
    return path


def test_channels_must_show_the_certificate_of_the_control_connection(
    server: SecureServer, other: Certificate, tmp_path: Path
) -> None:
    server.channel_certificate = other
    with connect(server, fingerprint=server.certificate.fingerprint.hex()) as client:
        before = server.application_bytes
        with pytest.raises(TrustError, match="leads to another server"):
            client.get("small", tmp_path)
        with pytest.raises(TrustError, match="leads to another server"):
            client.manifest("large")
    assert before > 0
    assert not (tmp_path / "small").exists()


def test_an_announced_certificate_is_adopted_and_only_that(
    server: SecureServer, other: Certificate, tmp_path: Path
) -> None:
    address = Address("127.0.0.1", server.port)
    known = KnownServers()
    known.add(address, server.certificate.fingerprint)
    server.options["next-certificate"] = other.fingerprint.hex()
    connect(server).close()
    assert known.find(address) == KnownServer(server.certificate.fingerprint, other.fingerprint)

    first = server.certificate
    server.certificate = server.channel_certificate = other
    del server.options["next-certificate"]
    notes: list[str] = []
    Client(address, security=Security(known=known, note=notes.append)).close()
    assert notes == [f"{address} has the new certificate that it had announced: {other.fingerprint.hex()}"]
    assert known.find(address) == KnownServer(other.fingerprint, None, (first.fingerprint,))
    # A profile that still names the former one is understood, and the former one is not believed any more.
    Client(address, security=Security(known=known, profile_fingerprint=first.fingerprint)).close()
    server.certificate = first
    with pytest.raises(TrustError, match="IS NOT THE EXPECTED ONE"):
        connect(server)

    server.certificate = make_certificate(tmp_path / "third.pem")
    with pytest.raises(TrustError, match="if the server was set up anew, ask whoever runs it"):
        connect(server)


def test_settings_that_cannot_be_written_stop_nobody(
    server: SecureServer, other: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Address("127.0.0.1", server.port)
    known = KnownServers()
    known.add(address, server.certificate.fingerprint)

    def refuse(self: object, edit: object) -> None:
        raise DeniedError("cannot write known_servers.json: Read-only file system")

    monkeypatch.setattr("twinport.config_files.ConfigFile.change", refuse)
    server.options["next-certificate"] = other.fingerprint.hex()
    notes: list[str] = []
    Client(address, security=Security(known=known, note=notes.append)).close()
    assert notes == [
        "the server's certificate cannot be remembered: cannot write known_servers.json: Read-only file system"
    ]


def test_what_an_unverified_server_announces_is_not_believed(server: SecureServer, other: Certificate) -> None:
    server.options["next-certificate"] = other.fingerprint.hex()
    with pytest.raises(TrustError):
        connect(server)
    # A pin of one call is no reason to believe more than that call.
    connect(server, fingerprint=server.certificate.fingerprint.hex()).close()
    assert KnownServers().find(Address("127.0.0.1", server.port)) is None


@pytest.mark.parametrize("alpn", [["http/1.1"], ["twinport-data/2"]])
def test_another_protocol_under_tls_gets_nothing(server: SecureServer, alpn: list[str]) -> None:
    server.alpn = alpn
    with pytest.raises(NetworkError, match=r"speaks TLS 1.3 but not twinport/2"):
        connect(server, fingerprint=server.certificate.fingerprint.hex())
    assert server.application_bytes == 0


def test_an_older_tls_is_refused(server: SecureServer) -> None:
    server.version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(NetworkError, match=r"offers no TLS 1.3"):
        connect(server, fingerprint=server.certificate.fingerprint.hex())


def test_tls_with_a_server_that_has_none_names_both_possibilities(server: SecureServer) -> None:
    plain = LyingServer()
    try:
        with pytest.raises(NetworkError, match=r"another program listens there.*--no-tls") as caught:
            twinport.connect("127.0.0.1", plain.port, tls=True, fingerprint="ab" * 32)
    finally:
        plain.close()
    assert caught.value.exit_code == 5


def test_tls_with_a_real_server_without_it(shm_path: Path) -> None:
    server = ServerProcess(shm_path / "root", "--tls", "off").start()
    try:
        with pytest.raises(NetworkError, match="twinportd without TLS"):
            twinport.connect("127.0.0.1", server.port, tls=True, fingerprint="ab" * 32)
    finally:
        server.stop()


def test_this_machine_is_met_in_plaintext_unless_something_says_tls(server: SecureServer) -> None:
    with pytest.raises(TrustError, match="is unknown"):  # asked in plaintext, told TlsRequired, asked again under TLS
        connect(server, tls=None)
    KnownServers().add(Address("127.0.0.1", server.port), server.certificate.fingerprint)
    connect(server, tls=None).close()
    with pytest.raises(LoginError, match="this needs TLS"):
        connect(server, tls=False)
    server.takes_plaintext = True
    with connect(server, tls=False) as client:
        assert client.identity.tls_version is None
    with connect(server, tls=None) as client:  # known under TLS: no step back
        assert client.identity.tls_version == "TLSv1.3"


def test_other_hosts_are_never_met_in_plaintext_by_accident() -> None:
    with pytest.raises(UsageError, match="say --plaintext if that is what you want"):
        twinport.connect("192.0.2.1", tls=False)
    with pytest.raises(UsageError, match="makes no sense without TLS"):
        twinport.connect("127.0.0.1", plaintext=True, fingerprint="ab" * 32)
    with pytest.raises(UsageError, match="TLS and plaintext at once"):
        twinport.connect("127.0.0.1", plaintext=True, tls=True)
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        twinport.connect("127.0.0.1", fingerprint="abc")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("::1", True),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("128.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104  # judged, not listened on
        ("files.example.org", False),
    ],
)
def test_what_this_machine_is(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_tls_everywhere_else_is_the_default_of_the_options() -> None:
    assert Security().tls is TlsMode.AUTO


def ask_on_a_terminal(words: list[str], answers: bytes, directory: Path) -> tuple[int, str]:
    """Run the command on a terminal and type the answers; exit code and all it showed."""
    theirs, ours = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *words], stdin=ours, stdout=ours, stderr=ours, cwd=directory, start_new_session=True
    )
    os.close(ours)
    shown = bytearray()

    def read() -> None:
        typed = False
        while True:
            try:
                data = os.read(theirs, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            shown.extend(data)
            if not typed and b"(yes/no)" in shown:
                typed = True
                os.write(theirs, answers)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        code = process.wait(RUN_SECONDS)
    finally:
        process.kill()
        reader.join()
        os.close(theirs)
    return code, shown.decode()


def test_the_question_is_asked_once_on_a_terminal(server: SecureServer, tmp_path: Path, own_settings: Path) -> None:
    words = ["--tls", "--host", f"127.0.0.1:{server.port}", "ls"]
    code, shown = ask_on_a_terminal(words, b"perhaps\nno\n", tmp_path)
    assert code == 4
    assert server.certificate.fingerprint.hex() in shown
    assert "Type yes or no:" in shown
    assert "is not trusted; nothing was sent" in shown
    assert server.application_bytes == 0

    code, shown = ask_on_a_terminal(words, b"yes\n", tmp_path)
    assert code == 0
    assert "small" in shown
    assert (own_settings / "known_servers.json").stat().st_mode & 0o777 == 0o600

    code, shown = ask_on_a_terminal(words, b"", tmp_path)
    assert code == 0
    assert "Trust this server" not in shown


def test_without_a_terminal_nobody_is_asked(
    server: SecureServer, other: Certificate, tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    host = f"127.0.0.1:{server.port}"
    code, _, complaint = run_command("--tls", "--host", host, "ls")
    assert code == 4
    assert f"twinport login {host} --fingerprint {server.certificate.fingerprint.hex()}" in complaint
    # The command that it names works, and from then on so does everything.
    assert run_command("login", host, "--fingerprint", server.certificate.fingerprint.hex())[0] == 0
    assert run_command("ls") == (0, "large\nsmall\n", "")
    assert run_command("--host", host, "ls")[0] == 0

    server.certificate = server.channel_certificate = other
    code, _, complaint = run_command("ls")
    assert code == 4
    assert "IS NOT THE EXPECTED ONE" in complaint
    assert run_command("login", host, "--fingerprint", other.fingerprint.hex())[0] == 0
    assert run_command("ls")[0] == 0
    assert run_command("--fingerprint", "ab" * 32, "ls")[0] == 4
