"""Certificates: what the server makes for itself, what it refuses, how a new one comes, and when it warns."""

from __future__ import annotations

import datetime
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from twinport_service import tls
from twinport_service.certificates import (
    CURRENT_FILE,
    NEXT_FILE,
    CertificateError,
    CertificateFiles,
    make_next,
    make_own,
    own_files,
    read_certificate,
    split_names,
    switch_over,
    warn_of_expiry,
)
from twinport_service.embedded import OWN_DIRECTORY
from twinport_service.log import configure_logging
from twinport_service.tls import TlsKeeper, load_material

from tests.service.daemon import run_daemon, running_daemon
from tests.service.raw_client import await_true

NOW = 1_700_000_000.0
DAY = 24 * 3600.0
NAMES = ("files.example", "localhost", "127.0.0.1", "::1")


@pytest.fixture
def log() -> Iterator[StringIO]:
    """What is logged."""
    stream = StringIO()
    configure_logging("human", "debug", stream)
    yield stream
    configure_logging("human", "error")


def pair(tmp_path: Path) -> CertificateFiles:
    """A certificate and its key as somebody else would issue them, by ``openssl``, in two files."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "90",
         "-subj", "/CN=files.example", "-addext", "subjectAltName=DNS:files.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o640)
    return CertificateFiles(certificate, key)


# its own -------------------------------------------------------------------------------------------------------------


def test_what_the_server_makes_for_itself(tmp_path: Path) -> None:
    directory = tmp_path / "new" / ".twinport"
    made = make_own(directory, NAMES, NOW)
    path = directory / CURRENT_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert os.listdir(directory) == [CURRENT_FILE]
    found = x509.load_pem_x509_certificate(path.read_bytes())
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert set(made.names) == set(NAMES)
    assert made.not_before < NOW < made.not_after
    assert made.not_after - NOW > 9 * 365 * DAY
    assert make_own(directory, ("other.example",), NOW + DAY) == made, "there is one already"
    shown = subprocess.run(
        ["openssl", "x509", "-in", path, "-noout", "-fingerprint", "-sha256"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip().rpartition("=")[2].replace(":", "").lower() == made.sha256.hex()


def test_a_half_written_file_of_an_earlier_start_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / (CURRENT_FILE + ".new")).write_text("-----BEGIN")
    assert make_own(tmp_path, NAMES, NOW).names
    assert os.listdir(tmp_path) == [CURRENT_FILE]


def test_two_servers_have_two_certificates(tmp_path: Path) -> None:
    assert make_own(tmp_path / "a", NAMES, NOW).sha256 != make_own(tmp_path / "b", NAMES, NOW).sha256


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_can_read_is_refused_with_what_to_run(tmp_path: Path, mode: int) -> None:
    make_own(tmp_path, NAMES, NOW)
    path = tmp_path / CURRENT_FILE
    path.chmod(mode)
    with pytest.raises(CertificateError, match=f"Run: chmod 600 {path}"):
        load_material(own_files(tmp_path))
    path.chmod(0o600)
    assert load_material(own_files(tmp_path)).certificate.names


def test_the_next_one_waits_beside_and_takes_over(tmp_path: Path) -> None:
    first = make_own(tmp_path, NAMES, NOW)
    following = make_next(tmp_path, NAMES, NOW)
    assert make_next(tmp_path, NAMES, NOW) == following
    material = load_material(own_files(tmp_path))
    assert (material.certificate, material.next_sha256) == (first, following.sha256)
    switch_over(tmp_path)
    material = load_material(own_files(tmp_path))
    assert (material.certificate, material.next_sha256) == (following, None)
    assert not (tmp_path / NEXT_FILE).exists()


# names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "expected", "unexpected"),
    [
        ("", "127.0.0.1", {"localhost", "127.0.0.1", "::1"}, set()),
        ("", "192.0.2.7", {"192.0.2.7", "localhost"}, set()),
        ("", "0.0.0.0", {"localhost"}, {"0.0.0.0"}),  # noqa: S104 (to be left away)
        ("", "::", {"localhost"}, {"::"}),
        ("a.example, *.b.example,,198.51.100.1,2001:db8::1", "::1", {"a.example", "*.b.example", "2001:db8::1"}, {""}),
    ],
)
def test_which_names_it_bears(text: str, host: str, expected: set[str], unexpected: set[str]) -> None:
    names = split_names(text, host)
    assert expected <= set(names)
    assert not unexpected & set(names)
    assert len(set(names)) == len(names)


def test_its_own_host_name_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "box-7")
    assert "box-7" in split_names("", "127.0.0.1")
    monkeypatch.setattr(socket, "gethostname", lambda: "büro pc")
    assert split_names("", "127.0.0.1") == ("localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize("name", ["a b", "a..b", "-a", "a/b", "bücher.example", "x" * 300, "a.*.b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(CertificateError, match="neither a DNS name nor an IP address"):
        split_names(name, "127.0.0.1")


# from elsewhere ------------------------------------------------------------------------------------------------------


def test_a_pair_from_elsewhere(tmp_path: Path) -> None:
    files = pair(tmp_path)
    material = load_material(files)
    assert material.certificate.names == ("files.example",)
    assert material.next_sha256 is None
    for context in (material.control, material.channel):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.num_tickets == 0


def test_a_pair_that_cannot_be_used_names_the_file_and_the_reason(tmp_path: Path) -> None:
    files = pair(tmp_path)
    (tmp_path / "other").mkdir()
    other = pair(tmp_path / "other")
    (tmp_path / "empty").write_text("")
    (tmp_path / "empty").chmod(0o600)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", locked],
        check=True, capture_output=True,
    )  # fmt: skip
    broken = [
        (replace(files, key=other.key), "key.pem: not a certificate with its key"),
        (replace(files, certificate=tmp_path / "none"), "cannot read .*/none: No such file"),
        (replace(files, key=tmp_path / "none"), "cannot read .*/none: No such file"),
        (replace(files, certificate=tmp_path / "empty"), "empty holds no certificate in PEM"),
        (replace(files, key=tmp_path / "empty"), "not a certificate with its key"),
        (replace(files, key=locked), "locked.pem is encrypted"),
        (replace(files, certificate=tmp_path), "cannot read"),
    ]
    for candidate, told in broken:
        with pytest.raises(CertificateError, match=told):
            load_material(candidate)
    files.key.chmod(0o644)
    with pytest.raises(CertificateError, match="chmod 640"):
        load_material(files)


def test_files_that_change_while_they_are_read_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_own(tmp_path, NAMES, NOW)
    following = make_next(tmp_path, NAMES, NOW)
    real = tls._make_context
    calls: list[str] = []

    def replaced_meanwhile(files: CertificateFiles, key: bytes, alpn: str) -> ssl.SSLContext:
        calls.append(alpn)
        if len(calls) == 2:
            switch_over(tmp_path)
        return real(files, key, alpn)

    monkeypatch.setattr(tls, "_make_context", replaced_meanwhile)
    assert load_material(own_files(tmp_path)).certificate == following
    assert len(calls) == 4


# time ----------------------------------------------------------------------------------------------------------------


def test_it_warns_from_fourteen_days_before_the_end(tmp_path: Path, log: StringIO) -> None:
    made = make_own(tmp_path, NAMES, NOW)
    moment = [made.not_after - 14 * DAY - 1]
    keeper = TlsKeeper(own_files(tmp_path), lambda: moment[0])
    keeper.check_expiry()
    assert "expires" not in log.getvalue()
    moment[0] += 1
    keeper.check_expiry()
    day = datetime.datetime.fromtimestamp(made.not_after, datetime.timezone.utc).strftime("%Y-%m-%d")
    assert f"WARNING [TLS] The certificate expires on {day}" in log.getvalue()
    moment[0] = made.not_after
    keeper.check_expiry()
    assert "The certificate expired on" in log.getvalue()
    assert "not valid before" in (warn_of_expiry(made, made.not_before - 1) or "")
    assert warn_of_expiry(made, NOW) is None


def test_names_that_are_missing_are_said(tmp_path: Path, log: StringIO) -> None:
    make_own(tmp_path, ("localhost",), NOW)
    keeper = TlsKeeper(own_files(tmp_path))
    keeper.check_names(("localhost",))
    assert log.getvalue() == ""
    keeper.check_names(("localhost", "files.example"))
    assert "not for files.example" in log.getvalue()


# the command ---------------------------------------------------------------------------------------------------------


def test_show_and_renew(tmp_path: Path) -> None:
    root = tmp_path / "root"
    missing = run_daemon("cert", "show", "--root", str(root))
    assert missing.returncode == 1
    assert "makes it at its first start" in missing.stderr
    assert not root.exists()
    with running_daemon(root, "--tls-name", "files.example", "--tls-name", "198.51.100.7,b.example") as daemon:
        assert daemon.stop() == 0
    own = root / OWN_DIRECTORY
    first = read_certificate(own / CURRENT_FILE)
    shown = run_daemon("cert", "show", "--root", str(root))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert first.sha256.hex() in shown.stdout
    for name in ("files.example", "b.example", "198.51.100.7", "localhost"):
        assert name in shown.stdout

    made = run_daemon("cert", "renew", "--root", str(root))
    following = read_certificate(own / NEXT_FILE)
    assert (made.returncode, made.stderr) == (0, "")
    assert following.sha256.hex() in made.stdout
    assert "kill -HUP" in made.stdout
    assert read_certificate(own / CURRENT_FILE) == first
    assert set(first.names) <= set(following.names)
    facts = json.loads(run_daemon("cert", "show", "--json", "--root", str(root)).stdout)
    assert (facts["sha256"], facts["next"]["sha256"]) == (first.sha256.hex(), following.sha256.hex())

    switched = run_daemon("cert", "renew", "--root", str(root))
    assert "In force from the next reload" in switched.stdout
    assert read_certificate(own / CURRENT_FILE) == following
    assert (
        json.loads(run_daemon("cert", "show", "--json", environment={"TWINPORT_SERVE_ROOT": str(root)}).stdout)["next"]
        is None
    )

    at_once = run_daemon("cert", "renew", "--now", "--tls-name", "c.example", "--root", str(root))
    assert at_once.returncode == 0
    third = read_certificate(own / CURRENT_FILE)
    assert third not in (first, following)
    assert "c.example" in third.names
    assert not (own / NEXT_FILE).exists()
    assert "PRIVATE" not in "".join(run.stdout + run.stderr for run in (shown, made, switched, at_once))


def test_a_pair_from_elsewhere_on_the_command_line(tmp_path: Path) -> None:
    root = tmp_path / "root"
    files = pair(tmp_path)
    flags = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    with running_daemon(root, *flags) as daemon:
        assert read_certificate(files.certificate).sha256.hex() in daemon.log()
        assert not (root / OWN_DIRECTORY / CURRENT_FILE).exists()
        assert daemon.stop() == 0
    config = tmp_path / "twinport.toml"
    config.write_text(f'root = "{root}"\ntls-certificate = "{files.certificate}"\ntls-key = "{files.key}"\n')
    assert "files.example" in run_daemon("cert", "show", "--config", str(config)).stdout
    refused = run_daemon("cert", "renew", "--config", str(config))
    assert refused.returncode == 1
    assert "from elsewhere" in refused.stderr
    for broken, told in ((flags[:2], "go together"), ([*flags[:3], str(tmp_path)], str(tmp_path))):
        failed = run_daemon("serve", "--root", str(root), "--control-port", "0", "--data-port", "0", *broken)
        assert failed.returncode == 2
        assert told in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_name_that_is_none_is_told_at_the_start(tmp_path: Path) -> None:
    failed = run_daemon("serve", "--root", str(tmp_path / "root"), "--tls-name", "a b")
    assert failed.returncode != 0
    assert "--tls-name a b: neither" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_open_server_says_so_loudly_at_every_start(tmp_path: Path) -> None:
    for _ in range(2):
        with running_daemon(tmp_path / "root", "--open", "--host", "0.0.0.0") as daemon:  # noqa: S104 (what is tested)
            await_true(lambda log=daemon.log: "WARNING [OPEN] --open: everybody who can reach 0.0.0.0" in log())  # type: ignore[misc]
            assert daemon.stop() == 0
