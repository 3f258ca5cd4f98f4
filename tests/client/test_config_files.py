"""The files that a user keeps: known servers, profiles, tokens. Private, whole at any time, shared by processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from twinport import secrets_store
from twinport.addresses import Address
from twinport.errors import ConflictError, DeniedError, NotFoundError, TwinportError, UsageError
from twinport.fingerprints import parse_fingerprint
from twinport.known_servers import KnownServer, KnownServers
from twinport.profiles import Profile, Profiles

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))
ADDRESS = Address("files.example.org", 5001)


def test_known_servers_are_never_replaced_unasked(tmp_path: Path) -> None:
    known = KnownServers(tmp_path / "sub" / "known")
    known.add(ADDRESS, ONE)
    known.add(ADDRESS, ONE)
    with pytest.raises(ConflictError, match="knows another certificate"):
        known.add(ADDRESS, TWO)
    known.announce(ADDRESS, TWO, THREE)  # by a server with another certificate than the one that is known
    assert known.find(ADDRESS) == KnownServer(ONE)
    known.announce(ADDRESS, ONE, TWO)
    with pytest.raises(ConflictError):
        known.adopt(ADDRESS, THREE)
    known.adopt(ADDRESS, TWO)
    known.adopt(ADDRESS, TWO)
    assert known.find(ADDRESS) == KnownServer(TWO, None, (ONE,))
    before = known.path.stat().st_mtime_ns
    known.announce(ADDRESS, TWO, None)
    known.announce(Address("other.example.org", 1), ONE, None)
    assert known.path.stat().st_mtime_ns == before  # nothing new, nothing written
    assert known.find(Address("FILES.example.org", 5001)) == KnownServer(TWO, None, (ONE,))
    assert known.find(Address("files.example.org", 5002)) is None
    known.replace(ADDRESS, THREE)
    assert known.find(ADDRESS) == KnownServer(THREE)
    assert known.path.stat().st_mode & 0o777 == 0o600
    assert known.path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in known.path.parent.iterdir()) == ["known", "known.lock"]


def test_processes_at_once_lose_no_entry(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from twinport.addresses import Address; from twinport.known_servers import KnownServers\n"
        "for port in range(1, 31): KnownServers(Path(sys.argv[1])).add(Address(sys.argv[2], port), bytes(32))\n"
    )
    path = tmp_path / "known"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), f"host{number}"]) for number in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    known = KnownServers(path)
    assert all(known.find(Address(f"host{number}", port)) for number in range(4) for port in range(1, 31))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"servers": []}',
        '{"servers": {"files.example.org:5001": []}}',
        '{"servers": {"files.example.org:5001": {}}}',
        '{"servers": {"files.example.org:5001": {"fingerprint": "ab"}}}',
        '{"servers": {"files.example.org:5001": {"fingerprint": 7}}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_entry_is_not_taken_for_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "known"
    path.write_text(content)
    known = KnownServers(path)
    with pytest.raises(UsageError, match="is damaged"):
        known.find(ADDRESS)
    with pytest.raises(UsageError, match="is damaged"):
        known.add(ADDRESS, ONE)
    assert path.read_text() == content


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TwinportError, match=r"cannot (read|write)"):
        KnownServers(tmp_path / "file" / "known").add(ADDRESS, ONE)
    (tmp_path / "directory").mkdir()
    with pytest.raises((TwinportError, DeniedError), match="cannot read"):
        KnownServers(tmp_path / "directory").find(ADDRESS)


def test_profiles_keep_what_they_do_not_know(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    path.write_text('{"later": 1, "profiles": {"a": {"host": "h", "later": [2], "user": "x", "key": "k"}}}')
    profiles = Profiles(path)
    assert profiles.default() is None
    assert profiles.get("a") == Profile("a", Address("h", 5001), user="x", key="k")
    profiles.save(Profile("a", Address("h", 5001), user="y", fingerprint=ONE, tls=True, login="password"))
    text = path.read_text()
    assert '"later": 1' in text
    assert "2\n" in text
    assert '"key"' not in text
    assert path.stat().st_mode & 0o777 == 0o600
    assert Profiles(path).default() == Profile("a", Address("h", 5001), "y", ONE, True, "password")


def test_profiles_are_found_by_address_and_user(tmp_path: Path) -> None:
    profiles = Profiles(tmp_path / "profiles.json")
    with pytest.raises(NotFoundError, match="there are: none"):
        profiles.get("a")
    assert profiles.name_for(ADDRESS, "alice") == "files.example.org"
    profiles.save(Profile("files.example.org", ADDRESS, user="alice"))
    assert profiles.name_for(ADDRESS, "alice") == "files.example.org"
    assert profiles.name_for(ADDRESS, "bob") == "bob@files.example.org"
    profiles.save(Profile("bob@files.example.org", ADDRESS, user="bob"))
    assert [getattr(profiles.find(ADDRESS, user), "user", None) for user in ("alice", "bob", None, "eve")] == [
        "alice",
        "bob",
        "bob",  # the default before others
        None,
    ]
    assert profiles.find(Address("files.example.org", 6001), None) is None
    profiles.remove("bob@files.example.org")
    assert profiles.default() is None
    with pytest.raises(NotFoundError):
        profiles.remove("bob@files.example.org")
    with pytest.raises(UsageError, match="is no name for a profile"):
        profiles.save(Profile("a b", ADDRESS))


@pytest.mark.parametrize(
    "entry", ["[]", "{}", '{"host": 1}', '{"host": "h", "port": 0}', '{"host": "h", "fingerprint": "x"}', '{"user": 1}']
)
def test_a_damaged_profile_is_told(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "profiles.json"
    path.write_text(f'{{"profiles": {{"a": {entry}}}}}')
    with pytest.raises(UsageError, match=r"the profile a in .* is damaged; repair or remove it"):
        Profiles(path).get("a")


def test_tokens_without_a_keyring_are_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets_store, "_keyring", lambda: None)
    path = tmp_path / "tokens.json"
    assert secrets_store.keep_token("a", "tp_secret", path) == "file"
    assert path.stat().st_mode & 0o777 == 0o600
    assert secrets_store.find_token("a", "file", path) == "tp_secret"
    assert secrets_store.find_token("b", "file", path) is None
    assert not secrets_store.keep_password("alice@h:1", "x")
    assert secrets_store.find_password("alice@h:1") is None
    secrets_store.forget("a", "alice@h:1", path)
    assert "tp_secret" not in path.read_text()


class MemoryKeyring:
    """What the package ``keyring`` looks like."""

    priority = 1.0

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.is_locked = False

    def get_keyring(self) -> MemoryKeyring:
        """The backend."""
        return self

    def set_password(self, service: str, entry: str, value: str) -> None:
        """Keep."""
        if self.is_locked:
            raise RuntimeError("locked")
        self.kept[service, entry] = value

    def get_password(self, service: str, entry: str) -> str | None:
        """Find."""
        if self.is_locked:
            raise RuntimeError("locked")
        return self.kept.get((service, entry))

    def delete_password(self, service: str, entry: str) -> None:
        """Forget; complains about what is not there, as the real one does."""
        del self.kept[service, entry]


def test_a_keyring_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = MemoryKeyring()
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    path = tmp_path / "tokens.json"
    assert secrets_store.keep_token("a", "tp_secret", path) == "keyring"
    assert secrets_store.keep_password("alice@h:1", "x")
    assert secrets_store.find_token("a", "keyring", path) == "tp_secret"
    assert secrets_store.find_password("alice@h:1") == "x"
    keyring.is_locked = True
    assert secrets_store.find_password("alice@h:1") is None
    assert secrets_store.keep_token("a", "tp_secret", path) == "file"
    secrets_store.forget("a", "alice@h:1", path)
    assert keyring.kept == {}


@pytest.mark.parametrize(
    "text",
    ["ab" * 32, "AB" * 32, ":".join(["ab"] * 32), "sha256:" + "ab" * 32, f" {'ab' * 32}\n", "SHA256=" + "ab" * 32],
)
def test_fingerprints_as_people_write_them(text: str) -> None:
    assert parse_fingerprint(text) == b"\xab" * 32


@pytest.mark.parametrize(
    "text", ["", "ab" * 31, "ab" * 33, "xy" * 32, "SHA256:q83vq83vq83vq83vq83vq83vq83vq83vq83vq83vq80"]
)
def test_what_is_no_fingerprint(text: str) -> None:
    with pytest.raises(UsageError, match="64 hexadecimal digits that `twinportd cert show` prints"):
        parse_fingerprint(text)
