"""What a state of a port or an error of the library means as a rule, and what to do about it."""

from __future__ import annotations

import socket
from dataclasses import replace

from twinport.addresses import Address
from twinport.errors import (
    BusyError,
    IntegrityError,
    LoginError,
    NetworkError,
    SpaceError,
    TrustError,
    TwinportError,
)

from .findings import Finding, Layer, Status
from .probes import PortProbe, PortState, is_private

LOCAL_DISK = "LocalDisk"
_FIREWALL = (
    "A firewall on the way drops the packets. On AWS this is what a security group without a rule for the port looks "
    "like; it may also be the host's own firewall, or that of the network you are in."
)
_PRIVATE = (
    "{number} is a private address: it means a machine of the network you are in, and not the one you want unless that "
    "is in the same network. Instances in the cloud have a private address besides their public one."
)
_NOT_RUNNING = (
    "The machine is there and nobody listens on the port: the server is not running, or listens elsewhere. One that "
    "was started in a terminal ends with it when the connection closes."
)
_INTERCEPTED = (
    "Something answers that is not the server: another program on that port, or a proxy or firewall on the way that "
    "takes the connection over."
)
_LATE = (
    "The data connection is a connection of its own; on a long or lossy way it can come late where the control "
    "connection did not."
)


def no_name(host: str, error: OSError) -> Finding:
    """The name leads nowhere."""
    reason = error.strerror or str(error)
    passes = getattr(error, "errno", None) == socket.EAI_AGAIN
    return Finding(
        Layer.NAME,
        Status.FAILED,
        f"{host} cannot be found: {reason}",
        "No name server answers: this machine may be offline." if passes else "No name server knows the name.",
        "check your own connection" if passes else "check the spelling, or give the server's public IP address",
        "NameUnknown",
    )


def no_route(number: str, error: OSError) -> Finding:
    """No interface leads there."""
    family = "IPv6" if ":" in number else "IPv4"
    return Finding(
        Layer.ROUTE,
        Status.FAILED,
        f"no way from here to {number}: {error.strerror or error}",
        f"This machine has no network that leads there, or no {family} at all.",
        "check your own connection or VPN, or give another address of the server",
        "NoRoute",
    )


def about_port(layer: Layer, port: int, found: PortProbe, number: str, *, is_fallback: bool = False) -> Finding:
    """What became of a connection attempt. ``is_fallback``: transfers can do without this port."""
    if found.state is PortState.OPEN:
        return Finding(layer, Status.OK, f"{port} is open ({found.seconds * 1000:.1f} ms)")
    status = Status.WARNING if is_fallback else Status.FAILED
    text = f"{port} is {found.state.value}: {found.reason} after {found.seconds:.1f} s"
    if is_fallback:
        text += "; transfers go through the control port instead"
    if found.state is PortState.REFUSED:
        step = (
            "look on the server: systemctl status twinportd, journalctl -u twinportd; run it as a service. Also check "
            "that host and port are right"
        )
        return Finding(layer, status, text, _NOT_RUNNING, step, "PortRefused")
    if is_private(number):
        step = "give the server's public address, or connect from inside its network (VPN)"
        return Finding(layer, status, text, _PRIVATE.format(number=number), step, "PrivateAddress")
    if found.state is PortState.UNREACHABLE:
        meaning = "A router on the way says that there is no such machine, or a firewall rejects the connection."
        return Finding(layer, status, text, meaning, "check the address and that the machine runs", "PortUnreachable")
    step = f"allow TCP {port} from your address in the security group and in the host's firewall"
    return Finding(layer, status, text, _FIREWALL, step, "PortFiltered")


def about_dead(port: int, dead: list[str], number: str) -> Finding:
    """The port is open, but not at the address that is tried first."""
    return Finding(
        Layer.CONTROL_PORT,
        Status.WARNING,
        f"{port} is open at {number}, and not at {', '.join(dead)}",
        "A name with several addresses is tried in their order: every connection waits for those that do not answer.",
        f"give {number} instead of the name, or have the others taken out of it",
        "AddressDead",
    )


def about_usual_data_port(port: int, found: PortProbe, number: str) -> Finding:
    """What may be the data port, where nobody can be asked which one it is."""
    finding = about_port(Layer.DATA_PORT, port, found, number)
    status = Status.OK if found.state is PortState.OPEN else Status.WARNING
    return replace(finding, status=status, text=finding.text.replace(str(port), f"{port}, the usual one,", 1))


def about_session(address: Address, error: TwinportError) -> Finding:
    """Why no session could be had though the port is open."""
    layer, meaning, step = Layer.SERVER, "", f"check that {address} is the server, and what listens there: ss -ltnp"
    if isinstance(error, TrustError):
        if error.code == "UnknownServer":
            meaning = "This client has not met the server before, and takes nobody's word for it."
        elif error.code == "CertificateChanged":
            meaning = "Either the server was set up anew, or somebody is in between."
        step = "compare the fingerprint with what `twinportd cert show` prints on the server, then twinport login"
    elif isinstance(error, LoginError):
        layer, step = Layer.LOGIN, "check user, key and password; `twinport login` stores them"
    elif isinstance(error, BusyError):
        meaning, step = "The server is there, and takes nobody up at the moment.", "try again in a minute"
    elif error.code == "TlsFailed":
        meaning = "The server has no TLS, or something answers that is not the server."
    elif isinstance(error, NetworkError):
        meaning = _INTERCEPTED
    else:  # before anything was sent: a key that cannot be read, options that contradict each other
        layer, step = Layer.LOGIN, "check --key and the other options; twinport doctor --help says what they mean"
    return Finding(layer, Status.FAILED, error.message, meaning, step, error.code, error.exit_code)


def about_data_connections(address: Address, error: TwinportError | OSError, *, is_fallback: bool) -> Finding:
    """Why no data connection could be made over an open port. ``is_fallback`` as in :func:`about_port`; somebody in
    between is never only a warning."""
    text = error.message if isinstance(error, TwinportError) else f"no data connection to {address}: {_reason(error)}"
    step = f"check that nothing but twinportd listens on {address.port}, and what is between here and there"
    status, code, exit_code = Status.FAILED, "DataFailed", NetworkError.exit_code
    if isinstance(error, TrustError):
        step = "find out what is between here and the server on this port; transfer nothing until then"
        code, exit_code = error.code, error.exit_code
    elif is_fallback:
        status, text = Status.WARNING, f"{text}; transfers go through the control port instead"
    return Finding(Layer.DATA_PORT, status, text, _INTERCEPTED, step, code, exit_code)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or "no answer in time"


def unsteady(port: int, failed: int, tries: int, slowest_seconds: float) -> Finding:
    """Some data connections came, some did not."""
    return Finding(
        Layer.DATA_PORT,
        Status.WARNING,
        f"{failed} of {tries} data connections to {port} failed; the slowest took {slowest_seconds:.1f} s",
        _LATE,
        "transfers go on all the same: what fails is tried again; `twinport bench` measures the loss of the line",
        "DataUnsteady",
    )


def about_transfer(error: TwinportError) -> Finding:
    """Why the file that was sent for a test did not come back as it was."""
    meaning, step = "", "look at the server's log: journalctl -u twinportd"
    layer = Layer.TRANSFER
    if error.code == LOCAL_DISK:
        step = "free some space here, or set TMPDIR to a directory that has some"
    elif isinstance(error, IntegrityError):
        meaning = "Bytes were changed on the way or on a disk; nothing of them was accepted."
        step = "check the server's disk and memory: journalctl -k"
    elif isinstance(error, SpaceError):
        layer, step = Layer.SPACE, "free some space on the server, or have the quota raised"
    elif isinstance(error, NetworkError):
        meaning, step = _LATE, "run this again; `twinport bench` measures the line"
    return Finding(layer, Status.FAILED, error.message, meaning, step, error.code, error.exit_code)
