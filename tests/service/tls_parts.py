"""What tests of TLS need: servers with a certificate, clients that pin nothing or everything, and ``openssl``."""

from __future__ import annotations

import ssl
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from twinport_protocol.sniff import ALPN_CHANNEL, ALPN_CONTROL
from twinport_service.certificates import make_own, own_files
from twinport_service.foundation import Foundation
from twinport_service.tls import TlsKeeper

from tests.service.raw_client import Address, RawChannel, RawControl


def with_tls(foundation: Foundation, directory: Path) -> Foundation:
    """The same foundation with a certificate of its own, kept in ``directory``."""
    make_own(directory, ("localhost", "127.0.0.1"), time.time())
    return replace(foundation, tls=TlsKeeper(own_files(directory)))


def client_context(*alpn: str, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client that believes every certificate: what tests attack with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def tls_control(address: Address, *, greet: bool = True) -> RawControl:
    """A control connection under TLS."""
    return RawControl(address, greet=greet, tls=client_context(ALPN_CONTROL))


def tls_channel(address: Address, *, magic: bool = True) -> RawChannel:
    """A channel under TLS."""
    return RawChannel(address, magic=magic, tls=client_context(ALPN_CHANNEL))


def s_client(
    address: Address, *options: str, text: str = "HELLO 2 agent=x\n1 QUIT\n"
) -> subprocess.CompletedProcess[str]:
    """``openssl s_client`` that says ``text``; its exit code and everything it printed."""
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"{address[0]}:{address[1]}", "-ign_eof", *options],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
