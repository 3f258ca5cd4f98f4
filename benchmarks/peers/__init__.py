"""Who takes part in the comparison."""

from __future__ import annotations

from .base import Peer, PeerError, Site
from .limits import FlushLoop, FlushLoop16, Limit, LimitBbr, LimitTls
from .nginx import Nginx, NginxTls
from .openssh import RsyncSsh, Scp, Sftp
from .rsyncd import RsyncDaemon
from .twinport import Twinport, TwinportTls
from .vsftpd import Vsftpd, VsftpdSegments, VsftpdTls

__all__ = ["OURS", "PEERS", "Peer", "PeerError", "Site"]

OURS: tuple[type[Peer], ...] = (Limit, LimitBbr, LimitTls, FlushLoop, FlushLoop16, Twinport, TwinportTls)
"""What needs nothing installed; a run without these has failed."""

_OTHERS: tuple[type[Peer], ...] = (
    *(Nginx, NginxTls, Vsftpd, VsftpdTls, VsftpdSegments),
    *(RsyncDaemon, RsyncSsh, Scp, Sftp),
)
PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (*OURS, *_OTHERS)}
