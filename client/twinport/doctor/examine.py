"""The examination: each layer once, from the bottom up. What stands on a layer that failed is not tried."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from twinport_protocol.version import VERSION

from twinport.addresses import DEFAULT_PORT, Address
from twinport.errors import LoginError, TrustError, TwinportError
from twinport.streams import CONNECT_SECONDS, connect_channel

from . import wording
from .findings import Finding, Layer, Status
from .probes import PROBE_SECONDS, PortProbe, PortState, is_private, probe_port, resolve, source_of
from .trial import try_transfer

if TYPE_CHECKING:
    from twinport.client import Client

DATA_TRIES = 5
_AGENT = re.compile(r"twinportd/(\d{1,6})\.(\d{1,6})\.\d{1,6}[\w.+-]*", re.ASCII)


class Examination:
    """Examines the way to ``address`` and the server there. ``open_client`` connects and logs in; a directory below
    ``to`` (the user's own folder where None) is made for a test file, and removed."""

    def __init__(
        self,
        address: Address,
        open_client: Callable[[], Client],
        *,
        to: str | None = None,
        probe_seconds: float = PROBE_SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._address = address
        self._open_client = open_client
        self._to = to
        self._probe_seconds = probe_seconds
        self._connect_seconds = connect_seconds
        self._now = now

    def findings(self) -> Iterator[Finding]:
        """At least one for each layer, as it is known. Raises nothing of the library, but ``KeyboardInterrupt``."""
        left = list(Layer)
        for finding in self._examine():
            if finding.layer in left:
                left.remove(finding.layer)
            yield finding
        for layer in left:
            yield Finding(layer, Status.UNTRIED, "not tried")

    def _examine(self) -> Iterator[Finding]:
        address = self._address
        try:
            numbers = resolve(address.host)
        except OSError as error:
            yield wording.no_name(address.host, error)
            return
        private = " (private)" if is_private(numbers[0]) else ""
        is_number = numbers == [address.host]
        where = f"{address.host} is an address" if is_number else f"{address.host} is {', '.join(numbers)}"
        yield Finding(Layer.NAME, Status.OK, where + private)
        route = self._route(numbers)
        yield route
        if route.status is Status.FAILED:
            return
        number, control, dead = self._first_open(numbers, address.port)
        if dead and control.state is PortState.OPEN:
            yield wording.about_dead(address.port, dead, number)
        else:
            yield wording.about_port(Layer.CONTROL_PORT, address.port, control, number)
        if control.state is not PortState.OPEN:
            if address.port == DEFAULT_PORT:
                # Whether the other port is any better tells a rule that is missing from a machine that is off.
                number, data, _ = self._first_open(numbers, DEFAULT_PORT + 1)
                yield wording.about_usual_data_port(DEFAULT_PORT + 1, data, number)
            return
        try:
            with self._open_client() as client:
                yield from self._examine_session(client, number)
        except TwinportError as error:
            if isinstance(error, LoginError):
                yield Finding(Layer.SERVER, Status.OK, "a twinportd answers")
            yield wording.about_session(address, error)

    def _route(self, numbers: list[str]) -> Finding:
        trouble: OSError | None = None
        for number in numbers:
            try:
                return Finding(Layer.ROUTE, Status.OK, f"from {source_of(number)} to {number}")
            except OSError as error:
                trouble = trouble or error
        assert trouble is not None  # noqa: S101  # a host that was found has an address
        return wording.no_route(numbers[0], trouble)

    def _first_open(self, numbers: list[str], port: int) -> tuple[str, PortProbe, list[str]]:
        """The first address where the port is open and those before it; the first of all where it is open nowhere."""
        probes: list[PortProbe] = []
        for place, number in enumerate(numbers):
            probes.append(probe_port(Address(number, port), self._probe_seconds))
            if probes[-1].state is PortState.OPEN:
                return number, probes[-1], numbers[:place]
        return numbers[0], probes[0], []

    # with a session --------------------------------------------------------------------------------------------------

    def _examine_session(self, client: Client, number: str) -> Iterator[Finding]:
        """``TwinportError`` when the session cannot be kept."""
        identity, addresses = client.identity, client.channel_addresses
        trip = min(client.ping() for _ in range(3))
        how = identity.tls_version or "plaintext"
        text = f"{identity.agent or 'a twinportd'}, {how}, round trip {trip * 1000:.1f} ms"
        yield Finding(Layer.SERVER, Status.OK, text)
        folder = f", folder {identity.home}/" if identity.home else ""
        yield Finding(Layer.LOGIN, Status.OK, f"{identity.user or 'anonymous'}{folder}")
        yield about_version(identity.agent)
        yield self._data_port(addresses, identity.certificate, number)
        yield from try_transfer(client, self._address, identity.home if self._to is None else self._to, self._now)

    def _data_port(self, addresses: tuple[Address, ...], certificate: bytes | None, number: str) -> Finding:
        """Over it, as transfers do: under TLS, to the same certificate."""
        address, is_fallback = addresses[0], len(addresses) > 1
        probe = probe_port(Address(number, address.port), self._probe_seconds)
        if probe.state is not PortState.OPEN:
            return wording.about_port(Layer.DATA_PORT, address.port, probe, number, is_fallback=is_fallback)
        failed, slowest = 0, 0.0
        trouble: TwinportError | OSError | None = None
        for _ in range(DATA_TRIES):
            began = time.monotonic()
            try:
                connect_channel(address, certificate, self._connect_seconds).close()
            except (TwinportError, OSError) as error:
                failed, trouble = failed + 1, error
                if isinstance(error, TrustError):
                    break
            slowest = max(slowest, time.monotonic() - began)
        if trouble is not None and (failed == DATA_TRIES or isinstance(trouble, TrustError)):
            return wording.about_data_connections(address, trouble, is_fallback=is_fallback)
        if failed:
            return wording.unsteady(address.port, failed, DATA_TRIES, slowest)
        text = f"{address.port} is open; {DATA_TRIES} connections, the slowest {slowest * 1000:.1f} ms"
        return Finding(Layer.DATA_PORT, Status.OK, text)


def about_version(agent: str) -> Finding:
    """Whether the server is of the same make as this client."""
    match = _AGENT.fullmatch(agent)
    if match is None:
        return Finding(Layer.VERSION, Status.OK, f"this is twinport {VERSION}; the server does not say its own")
    ours = VERSION.split(".")[:2]
    if [match[1], match[2]] == ours:
        return Finding(Layer.VERSION, Status.OK, f"both {VERSION}" if agent.endswith(f"/{VERSION}") else f"{agent}")
    older = "the server" if [int(match[1]), int(match[2])] < [int(part) for part in ours] else "this client"
    return Finding(
        Layer.VERSION,
        Status.WARNING,
        f"this is twinport {VERSION}, the server {agent}",
        "They speak the same protocol; what is new in one the other may not know.",
        f"upgrade {older}",
        "VersionDiffers",
    )
