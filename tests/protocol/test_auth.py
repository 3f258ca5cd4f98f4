"""What is signed at a login and the container it travels in, against ssh-keygen and against garbage."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.auth import (
    NAMESPACE,
    SshSignature,
    key_fingerprint,
    key_type,
    login_message,
    parse_user,
    signed_data,
)
from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError

NONCE = "5b" * 16
CERTIFICATE = bytes(range(32))
KEYGEN = shutil.which("ssh-keygen")
KINDS = [("ed25519", []), ("ecdsa", ["-b", "256"]), ("ecdsa", ["-b", "521"]), ("rsa", ["-b", "3072"])]


def keygen(*arguments: str | Path) -> str:
    """The output of ssh-keygen, which installs with the test command."""
    assert KEYGEN is not None, "ssh-keygen is missing; apt-get install openssh-client"
    return subprocess.run([KEYGEN, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def test_the_message_is_the_documented_text() -> None:
    message = login_message("alice", NONCE, "00" * 16, CERTIFICATE)
    assert message.decode() == (
        f"twinport login 1\nuser alice\nserver-nonce {NONCE}\nclient-nonce {'00' * 16}\n"
        f"certificate {CERTIFICATE.hex()}\n"
    )
    assert login_message("alice", NONCE, NONCE, None).endswith(b"certificate none\n")


@pytest.mark.parametrize("user", ["", "a\nuser root", "-rf", ".", "a b", "x" * 65, "ä", "a\0"])
def test_what_can_be_no_user(user: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_user(user)
    assert caught.value.code is ErrorCode.LOGIN_FAILED


@pytest.mark.parametrize("nonce", ["", "5b", "5B" * 16, NONCE + "\n", "g" * 32, "0" * 129])
def test_what_can_be_no_nonce(nonce: str) -> None:
    for pair in ((nonce, NONCE), (NONCE, nonce)):
        with pytest.raises(Refusal):
            login_message("alice", *pair, CERTIFICATE)


@pytest.mark.parametrize(("kind", "flags"), KINDS)
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_what_ssh_keygen_signs_is_read_and_what_we_write_it_verifies(
    tmp_path: Path, kind: str, flags: list[str], hash_name: str
) -> None:
    key = tmp_path / "key"
    keygen("-q", "-t", kind, *flags, "-N", "", "-f", key)
    message = tmp_path / "message"
    message.write_bytes(login_message("alice", NONCE, NONCE, CERTIFICATE))
    keygen("-Y", "sign", "-O", f"hashalg={hash_name}", "-n", NAMESPACE, "-f", key, message)
    signature = SshSignature.from_armor((tmp_path / "message.sig").read_text())
    assert signature.hash_name == hash_name
    assert SshSignature.from_word(signature.to_word()) == signature
    assert key_fingerprint(signature.public_key) == keygen("-l", "-f", key).split()[1]

    (tmp_path / "ours.sig").write_text(signature.to_armor())
    (tmp_path / "allowed").write_text(f"alice {(tmp_path / 'key.pub').read_text()}")
    with message.open("rb") as stream:
        verified = subprocess.run(
            f"{KEYGEN} -Y verify -f allowed -I alice -n {NAMESPACE} -s ours.sig".split(),
            stdin=stream,
            cwd=tmp_path,
            check=False,
            capture_output=True,
        )
    assert verified.returncode == 0, verified.stderr


def blob(**changes: object) -> bytes:
    """A well-formed container, of a key that signs nothing, with one thing changed."""
    public_key = b"\0\0\0\x0bssh-ed25519" + b"\0\0\0\x20" + bytes(32)
    fields = {"public_key": public_key, "algorithm": "ssh-ed25519", "signature": bytes(64), "hash_name": "sha512"}
    return SshSignature(**{**fields, **changes}).encode()  # type: ignore[arg-type]  # changed on purpose


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"SSHSIG",
        blob()[:-1],
        blob() + b"\0",
        blob().replace(b"\0\0\0\x01", b"\0\0\0\x02", 1),
        blob().replace(b"auth@twinport", b"file@twinport"),
        blob(hash_name="sha1"),
        blob(algorithm="ssh-rsa"),
        blob(algorithm="rsa-sha2-512"),
        blob(public_key=b"\0\0\0\x07ssh-dss"),
        blob(public_key=b"\0\0\0\x07ssh-rsa", algorithm="ssh-rsa"),
        blob(public_key=b"\0\0\0\x1ask-ssh-ed25519@openssh.com", algorithm="ssh-ed25519"),
        blob(signature=bytes(5000)),
        blob(algorithm="ssh-ed25519\udc80".encode("utf-8", "surrogateescape").decode("latin-1")),
    ],
)
def test_weak_and_malformed_containers_are_refused_alike(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        SshSignature.parse(bad)
    assert caught.value.code is ErrorCode.LOGIN_FAILED


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    for parse in (
        lambda: SshSignature.parse(data),
        lambda: SshSignature.parse(blob()[:10] + data),
        lambda: SshSignature.from_word(data.decode("latin-1")),
        lambda: SshSignature.from_armor(data.decode("latin-1")),
        lambda: key_type(data),
    ):
        code = ErrorCode.LOGIN_FAILED
        try:
            parse()
        except RemoteProtocolError as error:
            code = error.code
        assert code is ErrorCode.LOGIN_FAILED


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    data = signed_data(b"x", "sha256")
    assert data.startswith(b"SSHSIG\0\0\0\x0dauth@twinport\0\0\0\0\0\0\0\x06sha256\0\0\0\x20")
    with pytest.raises(KeyError):
        signed_data(b"x", "sha1")
