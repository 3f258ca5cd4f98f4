"""The examination: each layer once, from the bottom up. What stands on a layer that failed is not tried."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twinport_protocol.version import VERSION

from twinport.addresses import Address
from twinport.errors import DeniedError, LoginError, SourceError, SpaceError, TwinportError, local_failure
from twinport.remote_scratch import RemoteScratch
from twinport.streams import CONNECT_SECONDS, connect_channel
from twinport.walk import show

from . import wording
from .findings import Finding, Layer, Status
from .probes import PROBE_SECONDS, PortProbe, PortState, is_private, probe_port, resolve, source_of

if TYPE_CHECKING:
    from twinport.client import Client

DATA_TRIES = 5
TEST_BYTES = 1024 * 1024
CLOCK_SECONDS = 5.0
"""Clocks that differ by more are worth a word."""
SCARCE_BYTES = 1024**3
PREFIX = "twinport-doctor-"
_AGENT = re.compile(r"twinportd/(\d+)\.(\d+)\.\d+\S*")


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
        """One for each layer, as it is known. Raises nothing of the library, but ``KeyboardInterrupt``."""
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
        where = f"{address.host} is an address" if is_number else f"{address.host} is {', '.join(map(show, numbers))}"
        yield Finding(Layer.NAME, Status.OK, where + private)
        route = self._route(numbers)
        yield route
        if route.status is Status.FAILED:
            return
        control = self._probe(address)
        yield wording.about_port(Layer.CONTROL_PORT, address.port, control, numbers[0])
        if control.state is not PortState.OPEN:
            # Whether the other port is any better tells a rule that is missing from a machine that is off.
            data = Address(address.host, address.port + 1)
            yield wording.about_port(Layer.DATA_PORT, data.port, self._probe(data), numbers[0])
            return
        try:
            client = self._open_client()
        except TwinportError as error:
            if isinstance(error, LoginError):
                yield Finding(Layer.SERVER, Status.OK, "a twinportd answers")
            yield wording.about_session(address, error)
            return
        with client:
            yield from self._examine_session(client, numbers[0])

    def _route(self, numbers: list[str]) -> Finding:
        trouble: OSError | None = None
        for number in numbers:
            try:
                return Finding(Layer.ROUTE, Status.OK, f"from {source_of(number)} to {number}")
            except OSError as error:
                trouble = trouble or error
        assert trouble is not None  # noqa: S101  # a host that was found has an address
        return wording.no_route(numbers[0], trouble)

    def _probe(self, address: Address) -> PortProbe:
        return probe_port(address, self._probe_seconds)

    # with a session --------------------------------------------------------------------------------------------------

    def _examine_session(self, client: Client, number: str) -> Iterator[Finding]:
        identity = client.identity
        try:
            trip = min(client.ping() for _ in range(3))
        except TwinportError as error:
            yield wording.about_session(self._address, error)
            return
        how = identity.tls_version or "plaintext"
        text = f"{show(identity.agent) or 'a twinportd'}, {how}, round trip {trip * 1000:.1f} ms"
        yield Finding(Layer.SERVER, Status.OK, text)
        folder = f", folder {show(identity.home)}/" if identity.home else ""
        yield Finding(Layer.LOGIN, Status.OK, f"{identity.user or 'anonymous'}{folder}")
        yield about_version(identity.agent)
        yield self._data_port(client, number)
        yield from self._transfer(client)

    def _data_port(self, client: Client, number: str) -> Finding:
        """Over it, as transfers do: under TLS, to the same certificate."""
        address, *others = client.channel_addresses
        if others:
            probe = self._probe(address)
            if probe.state is not PortState.OPEN:
                return wording.about_port(Layer.DATA_PORT, address.port, probe, number, is_fallback=True)
        failed, slowest = 0, 0.0
        trouble: TwinportError | None = None
        for _ in range(DATA_TRIES):
            began = time.monotonic()
            try:
                connect_channel(address, client.identity.certificate, self._connect_seconds).close()
            except TwinportError as error:
                failed, trouble = failed + 1, error
            except OSError:
                failed += 1
            slowest = max(slowest, time.monotonic() - began)
        if trouble is not None and failed == DATA_TRIES:
            return wording.about_data_connection(address, trouble)
        if failed:
            return wording.unsteady(address.port, failed, DATA_TRIES, slowest)
        text = f"{address.port} is open; {DATA_TRIES} connections, the slowest {slowest * 1000:.1f} ms"
        return Finding(Layer.DATA_PORT, Status.OK, text)

    def _transfer(self, client: Client) -> Iterator[Finding]:
        home = client.identity.home if self._to is None else self._to
        remote = RemoteScratch(client, home, PREFIX)
        try:
            remote.make()
        except DeniedError as error:
            hint = "name a directory where you may write with --to"
            yield Finding(Layer.TRANSFER, Status.WARNING, f"not tried: {error.message}", "", hint, error.code)
            return
        except TwinportError as error:
            yield wording.about_transfer(error)
            return
        left: tuple[str, ...] = ()
        try:
            made = client.stat(remote.name)
            yield self._clock(made.mtime_ns / 1e9)
            yield self._round_trip(client, remote)
            yield _space(client)
        except TwinportError as error:
            yield wording.about_transfer(error)
        finally:
            left = remote.remove()
        if left:
            names = " ".join(map(show, left))
            yield Finding(
                Layer.TRANSFER, Status.WARNING, f"left on the server: {names}", "", f"twinport rm -r {names}", "Left"
            )

    def _clock(self, server_seconds: float) -> Finding:
        off = server_seconds - self._now()
        if abs(off) <= CLOCK_SECONDS:
            return Finding(Layer.CLOCK, Status.OK, f"the server's is within {CLOCK_SECONDS:.0f} s of this one's")
        which = "ahead of" if off > 0 else "behind"
        return Finding(
            Layer.CLOCK,
            Status.WARNING,
            f"the server's is {abs(off):.0f} s {which} this one's",
            "Certificates, tokens and `sync` go by the clock.",
            "set both by the network: timedatectl set-ntp true",
            "ClockDiffers",
        )

    def _round_trip(self, client: Client, remote: RemoteScratch) -> Finding:
        with _local_file() as path:
            place = remote.begin("test", [str(path)])
            began = time.monotonic()
            client.put(path, place)
            sent = time.monotonic()
            name = f"{place}/{path.name}"
            remote.finish([name])
            back = path.parent / "back"
            client.get(name, back, exact=True)
            fetched = time.monotonic()
            try:
                is_same = back.read_bytes() == path.read_bytes()
            except OSError as error:
                raise local_failure(f"cannot compare {back}", error) from None
        if not is_same:
            raise SourceError("the file that came back is not the one that was sent", "Differs")
        text = f"1 MiB sent, stored and fetched, every byte the same ({sent - began:.2f} s, {fetched - sent:.2f} s)"
        return Finding(Layer.TRANSFER, Status.OK, text)


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


def _space(client: Client) -> Finding:
    if client.identity.user is None:
        return Finding(Layer.SPACE, Status.OK, "there was room for the test file")
    try:
        free = client.quota().free_bytes
    except (SpaceError, DeniedError, LoginError):
        free = None
    if free is None:
        return Finding(Layer.SPACE, Status.OK, "no quota; there was room for the test file")
    if free < SCARCE_BYTES:
        text = f"{free / 1024**2:,.0f} MiB of your quota are left"
        return Finding(Layer.SPACE, Status.WARNING, text, "", "remove what is not needed, or have it raised", "Scarce")
    return Finding(Layer.SPACE, Status.OK, f"{free / 1024**2:,.0f} MiB of your quota are left")


@contextlib.contextmanager
def _local_file() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
            path = Path(directory) / "file"
            path.write_bytes(os.urandom(TEST_BYTES))
            yield path
    except OSError as error:
        raise local_failure(f"cannot write a test file to {tempfile.gettempdir()}", error) from None
