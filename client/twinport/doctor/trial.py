"""A small file there and back, in a directory of its own that is removed again; what that tells of clock and space."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twinport.addresses import Address
from twinport.errors import DeniedError, IntegrityError, LoginError, SourceError, SpaceError, TwinportError
from twinport.remote_scratch import RemoteScratch

from . import wording
from .findings import Finding, Layer, Status

if TYPE_CHECKING:
    from twinport.client import Client

TEST_BYTES = 1024 * 1024
CLOCK_SECONDS = 5.0
"""Clocks that differ by more are worth a word."""
SCARCE_BYTES = 1024**3
PREFIX = "twinport-doctor-"


def try_transfer(client: Client, address: Address, above: str, now: Callable[[], float]) -> Iterator[Finding]:
    """The findings, as they are known. Whatever ends it, the directory below ``above`` is removed, or said to be left.
    ``TwinportError`` where not even that can be tried."""
    remote = RemoteScratch(client, above, PREFIX)
    client.new_upload_id = remote.new_upload_id  # so that what is interrupted can be given up
    try:
        remote.make()
        yield _clock(client.stat(remote.name).mtime_ns / 1e9, now())
        yield _round_trip(client, remote)
        yield _space(client)
    except DeniedError as error:
        hint = "name a directory where you may write with --to"
        yield Finding(Layer.TRANSFER, Status.WARNING, f"not tried: {error.message}", "", hint, error.code)
    except TwinportError as error:
        yield wording.about_transfer(error)
    finally:
        left = remote.remove()
    for name in left:
        step = f"twinport --host {shlex.quote(str(address))} rm -r {shlex.quote(name)}"
        yield Finding(Layer.TRANSFER, Status.WARNING, f"left on the server: {name}", "", step, "Left")


def _clock(server_seconds: float, our_seconds: float) -> Finding:
    off = server_seconds - our_seconds
    if abs(off) <= CLOCK_SECONDS:
        return Finding(Layer.CLOCK, Status.OK, f"the server's is within {CLOCK_SECONDS:.0f} s of this one's")
    which = "ahead of" if off > 0 else "behind"
    return Finding(
        Layer.CLOCK,
        Status.WARNING,
        f"the server's is {abs(off):.0f} s {which} this one's",
        "Certificates, tokens and the times of files go by the clock.",
        "set both by the network: timedatectl set-ntp true",
        "ClockDiffers",
    )


def _round_trip(client: Client, remote: RemoteScratch) -> Finding:
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
            raise _local_trouble(error) from None
    if not is_same:
        raise IntegrityError("the file that came back is not the one that was sent", "Differs")
    text = f"1 MiB sent, stored and fetched, every byte the same ({sent - began:.2f} s, {fetched - sent:.2f} s)"
    return Finding(Layer.TRANSFER, Status.OK, text)


def _space(client: Client) -> Finding:
    if client.identity.user is None:
        return Finding(Layer.SPACE, Status.OK, "there was room for the test file")
    try:
        free = client.quota().free_bytes
    except (SpaceError, DeniedError, LoginError):
        free = None
    if free is None:
        return Finding(Layer.SPACE, Status.OK, "no quota; there was room for the test file")
    text = f"{free / 1024**2:,.0f} MiB of your quota are left"
    if free < SCARCE_BYTES:
        return Finding(Layer.SPACE, Status.WARNING, text, "", "remove what is not needed, or have it raised", "Scarce")
    return Finding(Layer.SPACE, Status.OK, text)


@contextlib.contextmanager
def _local_file() -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True))
            path = Path(directory) / "file"
            path.write_bytes(os.urandom(TEST_BYTES))
        except OSError as error:
            raise _local_trouble(error) from None
        yield path


def _local_trouble(error: OSError) -> SourceError:
    return SourceError(f"no test file can be kept on this machine: {error.strerror or error}", wording.LOCAL_DISK)
