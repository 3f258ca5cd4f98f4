"""What the kernel knows of a connection's line, and the congestion control that suits it.

Where packets are lost, cubic takes each loss for a full line and goes at a fraction of its rate; bbr measures the line
instead. On loopback nothing is lost and what bbr costs is its pacing. Systems without one or the other, and those that
do not let this program choose, keep what they have.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

LONG_RTT_SECONDS = 0.002
"""From this round trip on a line is worth bbr."""
_PACED = b"bbr"
_UNPACED = (b"cubic", b"reno")
_NAME_BYTES = 16
_INFO = struct.Struct("=68xI28xI32xII")
"""Of Linux's ``struct tcp_info``: tcpi_rtt (microseconds), tcpi_total_retrans, tcpi_segs_out, tcpi_segs_in."""
_MIN_RTT = struct.Struct("=148xI")
"""tcpi_min_rtt, since Linux 4.6."""
_DISORDER = struct.Struct("=224xI")
"""tcpi_rcv_ooopack, since Linux 5.4."""
_INFO_BYTES = 256
_UNKNOWN = 0xFFFFFFFF


@dataclass(frozen=True)
class LineFacts:
    """A connection's line as the kernel sees it; zeros where it does not tell."""

    rtt_seconds: float = 0.0
    is_local: bool = False
    """Whether the other end is on this machine."""
    is_paced: bool = False
    """Whether this end sends by bbr."""
    packets: int = 0
    """Sent and received so far."""
    disturbed_packets: int = 0
    """Of them sent again, or received out of order: as a rule the sign of a loss."""


def is_local(connection: socket.socket) -> bool:
    """Whether both ends of a TCP connection are on this machine; of any other kind of socket, True."""
    try:
        here, there = connection.getsockname(), connection.getpeername()
    except OSError:
        return False
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(there[0])
    return host == here[0] or host.startswith(("127.", "::ffff:127.")) or host == "::1"


def look_at(connection: socket.socket) -> LineFacts:
    """What the kernel says about a connected socket now. Never raises."""
    local = is_local(connection)
    if not hasattr(socket, "TCP_INFO"):
        return LineFacts(is_local=local)
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        paced = _algorithm_of(connection) == _PACED
    except OSError:
        return LineFacts(is_local=local)
    if len(info) < _INFO.size:
        return LineFacts(is_local=local, is_paced=paced)
    rtt_us, resent, sent, received = _INFO.unpack_from(info)
    if len(info) >= _MIN_RTT.size:
        (least_us,) = _MIN_RTT.unpack_from(info)
        if 0 < least_us < _UNKNOWN:
            rtt_us = least_us  # without the peer's delayed acknowledgements
    disordered = _DISORDER.unpack_from(info)[0] if len(info) >= _DISORDER.size else 0
    return LineFacts(rtt_us / 1e6, local, paced, sent + received, resent + disordered)


def suit(connection: socket.socket) -> None:
    """Choose the congestion control of a connected socket by its line; where that cannot be, nothing. Never raises."""
    if not hasattr(socket, "TCP_CONGESTION"):
        return
    try:
        now = _algorithm_of(connection)
        if is_local(connection):
            if now == _PACED:
                _try(connection, _UNPACED)
        elif now != _PACED and look_at(connection).rtt_seconds > LONG_RTT_SECONDS:
            _try(connection, (_PACED,))
    except OSError:
        return


def _algorithm_of(connection: socket.socket) -> bytes:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES).rstrip(b"\0")


def _try(connection: socket.socket, names: tuple[bytes, ...]) -> None:
    """The first that this system has and allows; without rights those of ``tcp_allowed_congestion_control`` are."""
    for name in names:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        except OSError:
            continue
        return
