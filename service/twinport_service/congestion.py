"""The congestion control that suits an accepted connection.

Where packets are lost, cubic takes each loss for a full line and goes at a fraction of its rate; bbr measures the line
instead. On loopback nothing is lost and what bbr costs is its pacing. A system without one or the other, or one that
does not let this process choose, keeps what it has.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

LONG_RTT_SECONDS = 0.002
"""From this round trip on a line is worth bbr."""
PACED = b"bbr"
UNPACED = (b"cubic", b"reno")
_NAME_BYTES = 16
_RTT = struct.Struct("=68xI")
"""tcpi_rtt of Linux's ``struct tcp_info``, in microseconds; after the handshake it is that of the handshake."""


def suit(sock: socket.socket) -> None:
    """Choose the congestion control of a connected socket by its line; where that cannot be, nothing. Never raises."""
    with suppress(OSError):
        now = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES).rstrip(b"\0")
        if is_local(sock):
            if now == PACED:
                _try(sock, UNPACED)
        elif now != PACED and _rtt_seconds(sock) > LONG_RTT_SECONDS:
            _try(sock, (PACED,))


def is_local(sock: socket.socket) -> bool:
    """Whether both ends of a connected socket are on this machine; False for one whose peer is gone. Never raises."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    try:
        here, there = str(sock.getsockname()[0]), str(sock.getpeername()[0])
    except OSError:
        return False
    return here == there or there.startswith(("127.", "::ffff:127.")) or there == "::1"


def _rtt_seconds(sock: socket.socket) -> float:
    (rtt_us,) = _RTT.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size))
    return float(rtt_us / 1e6)


def _try(sock: socket.socket, names: tuple[bytes, ...]) -> None:
    """The first that this system has and allows; without rights those of ``tcp_allowed_congestion_control`` are."""
    for name in names:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
            return
