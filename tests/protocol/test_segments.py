"""How files are cut, and roots against an independent reading of the rule."""

from __future__ import annotations

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.numbers import MAX_SIZE
from twinport_protocol.segments import (
    EMPTY_DIGEST,
    MAX_SEGMENTS,
    MIN_SEGMENT_BYTES,
    Layout,
    Manifest,
    digest_of,
    root_of,
    segment_size_for,
)

from tests.protocol.helpers import some_bytes

MIB = 1024 * 1024
sizes = (
    st.integers(0, MAX_SIZE)
    | st.integers(0, 200_000 * MIB)
    | st.integers(-3, 3).flatmap(
        lambda off: st.integers(0, 40).map(
            lambda power: max(0, 8 * MIB * 10_000 * 2**power // 2 + off) % (MAX_SIZE + 1)
        )
    )
)


def root_by_the_book(size: int, segment_size: int, digests: list[bytes]) -> bytes:
    """The root of a file of several segments, written from the document and not from the code."""
    text = size.to_bytes(8, "big") + segment_size.to_bytes(8, "big") + b"".join(digests)
    return blake3.blake3(text, derive_key_context="twinport manifest v1").digest()


@given(sizes)
def test_segments_cover_the_file_exactly(size: int) -> None:
    layout = Layout.of(size)
    assert 1 <= layout.count <= MAX_SEGMENTS
    assert layout.segment_bytes == segment_size_for(size)
    last = layout.count - 1
    probes = {0, 1, last // 2, last - 1, last} & set(range(layout.count))
    for segment in probes:
        assert layout.start(segment) == segment * layout.segment_bytes
        assert (layout.length(segment) == layout.segment_bytes) or segment == last
    assert layout.start(last) + layout.length(last) == size
    assert layout.length(last) > 0 or size == 0
    doublings = layout.segment_bytes // MIN_SEGMENT_BYTES
    assert doublings & (doublings - 1) == 0
    assert doublings == 1 or layout.segment_bytes // 2 * MAX_SEGMENTS < size, "doubled only as often as needed"


@pytest.mark.parametrize(
    ("size", "segment_mib", "count"),
    [
        (0, 8, 1), (1, 8, 1), (8 * MIB, 8, 1), (8 * MIB + 1, 8, 2), (100 * MIB, 8, 13), (80_000 * MIB, 8, 10_000),
        (80_000 * MIB + 1, 16, 5_001), (160_000 * MIB, 16, 10_000), (160_000 * MIB + 1, 32, 5_001),
        (MAX_SIZE, 2**30, 8_192),
    ],
)  # fmt: skip
def test_layouts(size: int, segment_mib: int, count: int) -> None:
    assert Layout.of(size) == Layout(size, segment_mib * MIB, count)


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, 2**64])
def test_no_layout_outside_the_range_of_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Layout.of(size)


@pytest.mark.parametrize("segment", [-1, 2, 10_000])
def test_no_length_outside_the_file(segment: int) -> None:
    with pytest.raises(IndexError):
        Layout.of(8 * MIB + 1).length(segment)


@pytest.mark.parametrize("size", [0, 1, 4096, 8 * MIB])
def test_the_root_of_one_segment_is_what_b3sum_prints(size: int) -> None:
    data = some_bytes(size)
    digest = blake3.blake3(data).digest()
    assert digest_of(data) == digest
    assert root_of(size, digest) == digest
    assert Manifest.checked(size, digest, digest).root == digest


def test_the_digest_of_nothing() -> None:
    assert EMPTY_DIGEST.hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_the_root_of_several_segments() -> None:
    data = some_bytes(8 * MIB + 1)
    digests = [blake3.blake3(part).digest() for part in (data[: 8 * MIB], data[8 * MIB :])]
    root = root_by_the_book(len(data), 8 * MIB, digests)
    manifest = Manifest.checked(len(data), b"".join(digests), root)
    assert manifest.root == root
    assert [manifest.digest(0), manifest.digest(1)] == digests
    assert root != blake3.blake3(data).digest()


@given(st.integers(8 * MIB + 1, 90_000 * MIB), st.binary(min_size=32, max_size=32))
def test_the_root_is_computed_by_the_book_at_every_size(size: int, digest: bytes) -> None:
    layout = Layout.of(size)
    assert root_of(size, digest * layout.count) == root_by_the_book(size, layout.segment_bytes, [digest] * layout.count)


@given(st.integers(8 * MIB + 1, 40 * MIB), st.integers(0, 2**16), st.integers(0, 7))
def test_every_bit_of_a_manifest_counts(size: int, byte: int, bit: int) -> None:
    digests = some_bytes(32 * Layout.of(size).count)
    root = root_of(size, digests)
    assert Manifest.checked(size, digests, root) == Manifest(size, digests)
    changed = bytearray(digests)
    changed[byte % len(changed)] ^= 1 << bit
    wrong = [(size, bytes(changed)), (size, digests[:-1]), (size, digests + bytes(32)), (size, b"")]
    if Layout.of(size - 1).count == Layout.of(size).count:
        wrong.append((size - 1, digests))
    for other_size, other_digests in wrong:
        with pytest.raises(RemoteProtocolError) as caught:
            Manifest.checked(other_size, other_digests, root)
        assert caught.value.code is ErrorCode.ROOT_MISMATCH
