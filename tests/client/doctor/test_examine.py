"""The examination: against real ports in every state, and real servers with one layer broken at a time."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import twinport
from twinport import streams
from twinport.addresses import Address
from twinport.client import Client
from twinport.doctor import examine, wording
from twinport.doctor.examine import Examination, about_version
from twinport.doctor.findings import Finding, Layer, Status
from twinport.doctor.probes import PortProbe, PortState, is_private, probe_port
from twinport.errors import NetworkError, TrustError
from twinport.remote_scratch import RemoteScratch
from twinport_protocol.version import VERSION

from tests.client.servers import Passage, Proxy, ServerProcess

PASSWORD = "correct horse battery staple"
MakeProxy = Callable[..., Proxy]


def examined(port: int, host: str = "127.0.0.1", **options: object) -> dict[Layer, Finding]:
    """What is found of each layer of a server of this machine; the last word where there are several."""
    login: dict[str, object] = {key: options.pop(key) for key in ("user", "password", "fingerprint") if key in options}

    def open_client() -> Client:
        return twinport.connect(host, port, tls=False, patience_seconds=1.0, **login)  # type: ignore[arg-type]

    found = list(Examination(Address(host, port), open_client, probe_seconds=0.5, **options).findings())  # type: ignore[arg-type]
    assert {finding.layer for finding in found} == set(Layer)
    return {finding.layer: finding for finding in found}


def states(found: dict[Layer, Finding]) -> dict[str, str]:
    """The layers that are not well."""
    return {layer.value: one.status.value for layer, one in found.items() if one.status is not Status.OK}


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that answers no packet: its queue of connections is full, and the kernel drops what comes then."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        while probe_port(Address("127.0.0.1", port), 0.2).state is PortState.OPEN:
            pass
        yield port


@contextmanager
def other_program(greeting: bytes) -> Iterator[int]:
    """Something that says the same to everybody and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    visitor, _ = listener.accept()
                except OSError:
                    return
                with visitor:
                    visitor.settimeout(1.0)
                    try:
                        visitor.recv(1000)
                        visitor.sendall(greeting)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_server_that_is_well(shared_server: ServerProcess) -> None:
    found = examined(shared_server.port)
    assert states(found) == {}
    assert f"twinportd/{VERSION}" in found[Layer.SERVER].text
    assert "every byte the same" in found[Layer.TRANSFER].text
    assert not list(shared_server.root.glob("twinport-doctor-*"))


def test_a_name_that_is_none() -> None:
    found = examined(5001, host="no-such-host.invalid")
    assert found[Layer.NAME].status is Status.FAILED
    assert found[Layer.NAME].code == "NameUnknown"
    assert {found[layer].status for layer in Layer if layer is not Layer.NAME} == {Status.UNTRIED}


def test_a_server_that_does_not_run(own_server: ServerProcess) -> None:
    own_server.stop()
    found = examined(own_server.port)
    assert found[Layer.CONTROL_PORT].code == "PortRefused"
    assert "ends with it when the connection closes" in found[Layer.CONTROL_PORT].meaning
    assert found[Layer.SERVER].status is Status.UNTRIED


def test_a_port_that_a_firewall_hides() -> None:
    with silent_port() as port:
        found = examined(port)
    assert found[Layer.CONTROL_PORT].code == "PortFiltered"
    assert "security group" in found[Layer.CONTROL_PORT].meaning
    assert f"allow TCP {port}" in found[Layer.CONTROL_PORT].next_step


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_a_port_where_somebody_else_answers(greeting: bytes) -> None:
    with other_program(greeting) as port:
        found = examined(port)
    assert found[Layer.CONTROL_PORT].status is Status.OK
    assert found[Layer.SERVER].status is Status.FAILED
    assert "a proxy or firewall on the way" in found[Layer.SERVER].meaning


def through(server: ServerProcess, make_proxy: MakeProxy, data_port: int) -> Proxy:
    """A way on which the greeting names another data port."""

    def rewrite(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "control" and going == "down":
            return data.replace(b"data-port=%d" % proxy.port, b"data-port=%d" % data_port)
        return data

    proxy = make_proxy(server, rewrite)
    return proxy


@pytest.mark.parametrize("state", ["refused", "filtered"])
def test_a_data_port_that_is_closed_while_the_other_is_open(
    shared_server: ServerProcess, make_proxy: MakeProxy, state: str
) -> None:
    with ExitStack() as stack:
        if state == "filtered":
            port = stack.enter_context(silent_port())
        else:
            reserved = stack.enter_context(socket.socket())
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
        found = examined(through(shared_server, make_proxy, port).port)
    assert states(found) == {"data port": "warning"}, "transfers find the way through the control port"
    assert f"{port} is {state}" in found[Layer.DATA_PORT].text
    assert "through the control port instead" in found[Layer.DATA_PORT].text


def test_data_connections_of_which_some_fail(shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, turns = streams.connect_channel, iter(range(100))

    def now_and_then(address: Address, certificate: bytes | None, seconds: float) -> socket.socket:
        if next(turns) % 2:
            raise TimeoutError
        return connect(address, certificate, seconds)

    monkeypatch.setattr(examine, "connect_channel", now_and_then)
    found = examined(shared_server.port)
    assert states(found) == {"data port": "warning"}
    assert found[Layer.DATA_PORT].text.startswith("2 of 5 data connections to ")


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with an account."""
    root = tmp_path_factory.mktemp("guarded") / "root"
    command = [sys.executable, "-c", "from twinport_service.cli import main; main()", "user", "add", "alice"]
    subprocess.run(
        [*command, "--password-stdin", "--root", str(root)], input=f"{PASSWORD}\n", text=True, check=True, timeout=60
    )
    with ServerProcess(root, "--no-login-delays").reserving() as server:
        yield server.start()


def test_a_login_that_is_wrong(guarded_server: ServerProcess) -> None:
    found = examined(guarded_server.port, user="alice", password="wrong")
    assert found[Layer.SERVER].status is Status.OK
    assert (found[Layer.LOGIN].status, found[Layer.LOGIN].exit_code) == (Status.FAILED, 4)
    assert found[Layer.TRANSFER].status is Status.UNTRIED


def test_somebody_with_a_folder_and_nothing_else(guarded_server: ServerProcess) -> None:
    found = examined(guarded_server.port, user="alice", password=PASSWORD)
    assert states(found) == {}
    assert found[Layer.LOGIN].text == "alice, folder alice/"
    refused = examined(guarded_server.port, user="alice", password=PASSWORD, to="elsewhere")
    assert refused[Layer.TRANSFER].status is Status.WARNING
    assert "--to" in refused[Layer.TRANSFER].next_step


@pytest.mark.parametrize(("ahead", "word"), [(100.0, "behind"), (-100.0, "ahead of")])
def test_a_clock_that_is_wrong(shared_server: ServerProcess, ahead: float, word: str) -> None:
    found = examined(shared_server.port, now=lambda: time.time() + ahead)
    assert states(found) == {"clock": "warning"}
    assert word in found[Layer.CLOCK].text


def test_bytes_that_do_not_come_back_as_they_went(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = Client.get

    def corrupt(self: Client, name: str, to: Path, *, exact: bool) -> None:
        get(self, name, to, exact=exact)
        data = to.read_bytes()
        to.write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))

    monkeypatch.setattr(Client, "get", corrupt)
    found = examined(shared_server.port)
    assert states(found) == {"transfer": "failed", "space": "untried"}
    assert (found[Layer.TRANSFER].code, found[Layer.TRANSFER].exit_code) == ("Differs", 7)
    assert "changed on the way or on a disk" in found[Layer.TRANSFER].meaning
    assert not list(shared_server.root.glob("twinport-doctor-*"))


def test_no_room_on_this_machine_is_not_the_servers_fault(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not-there"))
    found = examined(shared_server.port)
    assert found[Layer.TRANSFER].code == "LocalDisk"
    assert "TMPDIR" in found[Layer.TRANSFER].next_step
    assert not list(shared_server.root.glob("twinport-doctor-*"))


@pytest.mark.parametrize("moment", ["make", "put", "get"])
def test_an_interrupt_leaves_nothing_behind(
    own_server: ServerProcess, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    place, name = (RemoteScratch, "make") if moment == "make" else (Client, moment)
    real = getattr(place, name)

    def interrupted(self: object, *words: object, **options: object) -> None:
        real(self, *words, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        examined(own_server.port)
    assert not list(own_server.root.glob("twinport-doctor-*"))


def test_a_server_that_goes_in_the_middle(own_server: ServerProcess) -> None:
    def open_client() -> Client:
        return twinport.connect("127.0.0.1", own_server.port, tls=False, patience_seconds=0.5)

    found = []
    for finding in Examination(Address("127.0.0.1", own_server.port), open_client, probe_seconds=0.5).findings():
        found.append(finding)
        if finding.layer is Layer.VERSION and finding.status is Status.OK:
            own_server.stop()
    assert {finding.layer for finding in found} == set(Layer)
    assert [finding.layer for finding in found if finding.status is Status.FAILED]


def test_a_name_whose_first_address_is_dead(shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.2", shared_server.port))
        monkeypatch.setattr(examine, "resolve", lambda host: ["127.0.0.2", "127.0.0.1"])
        found = examined(shared_server.port)
    assert states(found) == {"control port": "warning"}
    assert found[Layer.CONTROL_PORT].text == f"{shared_server.port} is open at 127.0.0.1, and not at 127.0.0.2"


@pytest.mark.parametrize("is_fallback", [True, False])
def test_data_connections_of_which_all_fail(is_fallback: bool) -> None:
    address = Address("h", 5002)
    for error in (TimeoutError(), NetworkError("cut")):
        found = wording.about_data_connections(address, error, is_fallback=is_fallback)
        assert found.status is (Status.WARNING if is_fallback else Status.FAILED)
    in_between = wording.about_data_connections(address, TrustError("another", "CertificateChanged"), is_fallback=True)
    assert (in_between.status, in_between.exit_code) == (Status.FAILED, 4)


@pytest.mark.parametrize(
    ("agent", "status", "step"),
    [
        (f"twinportd/{VERSION}", Status.OK, ""),
        ("twinportd/99.1.0", Status.WARNING, "upgrade this client"),
        ("twinportd/0.0.9", Status.WARNING, "upgrade the server"),
        ("", Status.OK, ""),
        ("another/1", Status.OK, ""),
        ("twinportd/0.0.1\x1b[2J", Status.OK, ""),
        (f"twinportd/{'9' * 5000}.0.0", Status.OK, ""),
    ],
)
def test_versions(agent: str, status: Status, step: str) -> None:
    found = about_version(agent)
    assert (found.status, found.next_step) == (status, step)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("10.0.0.5", True),
        ("172.31.4.9", True),
        ("192.168.1.7", True),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("3.138.32.213", False),
        ("2600::1", False),
    ],
)
def test_private_addresses(number: str, expected: bool) -> None:
    assert is_private(number) is expected


def test_the_private_address_of_an_instance_is_named_as_such() -> None:
    probe = PortProbe(PortState.FILTERED, 5.0, "no answer")
    found = wording.about_port(Layer.CONTROL_PORT, 5001, probe, "172.31.4.9")
    assert found.code == "PrivateAddress"
    assert "public address" in found.next_step


def test_a_line_on_which_data_connections_come_late_is_named_as_such() -> None:
    found = wording.about_transfer(NetworkError("no data connection"))
    assert "later" not in found.meaning
    assert "data connection" in found.meaning
    assert "bench" in found.next_step
