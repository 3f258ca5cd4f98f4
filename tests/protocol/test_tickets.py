"""Tickets: they go round, and nothing that was changed in any way is taken."""

from __future__ import annotations

import hmac
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.tickets import (
    MAX_SCOPE_BYTES,
    MAX_TICKET_BYTES,
    Action,
    Ticket,
    TicketKeys,
    decode_ticket,
    encode_ticket,
)

from tests.protocol.helpers import attempt

AUDIENCE = b"a" * 16
OLD, NEW = b"\x01" * 32, b"\x02" * 32
KEYS = TicketKeys(AUDIENCE, {1: OLD}, 1)
NOW = 1_700_000_000
SAMPLE = Ticket(Action.UPLOAD, "anna", b"upload-id-16byte", 12345, NOW + 60, 3)

tickets = st.builds(
    Ticket,
    action=st.sampled_from(list(Action)),
    user=st.text(st.characters(codec="utf-8"), max_size=60),
    scope=st.binary(max_size=MAX_SCOPE_BYTES),
    size=st.integers(0, 2**63 - 1),
    expires_at=st.integers(NOW, 2**62),
    generation=st.integers(0, 2**32 - 1),
    secure=st.booleans(),
    epoch=st.integers(0, 2**64 - 1),
)


def code_of(keys: TicketKeys, raw: bytes, now: float = NOW) -> ErrorCode:
    """The code with which a ticket is refused."""
    with pytest.raises(Refusal) as caught:
        keys.verify(raw, now)
    return caught.value.code


@given(tickets)
def test_a_ticket_goes_round(ticket: Ticket) -> None:
    raw = KEYS.sign(ticket)
    assert len(raw) <= MAX_TICKET_BYTES
    word = encode_ticket(raw)
    assert not set(word) & set(" =%+/\n")
    assert KEYS.verify(decode_ticket(word), NOW) == ticket


def test_every_flipped_bit_is_refused() -> None:
    raw = KEYS.sign(SAMPLE)
    for at in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        assert code_of(KEYS, bytes(changed)) is ErrorCode.TICKET_INVALID


def test_every_shorter_and_longer_ticket_is_refused() -> None:
    raw = KEYS.sign(SAMPLE)
    for end in range(len(raw)):
        assert code_of(KEYS, raw[:end]) is ErrorCode.TICKET_INVALID
    assert code_of(KEYS, raw + b"\x00") is ErrorCode.TICKET_INVALID
    assert code_of(KEYS, raw + raw) is ErrorCode.TICKET_INVALID


@given(st.binary(max_size=300))
def test_garbage_is_refused(raw: bytes) -> None:
    assert code_of(KEYS, raw) is ErrorCode.TICKET_INVALID


def test_another_services_ticket_is_refused_even_under_the_same_key() -> None:
    other = TicketKeys(b"b" * 16, {1: OLD}, 1)
    assert code_of(KEYS, other.sign(SAMPLE)) is ErrorCode.TICKET_INVALID


def test_the_epoch_is_signed_and_is_not_judged() -> None:
    raw = KEYS.sign(replace(SAMPLE, epoch=2**64 - 1))
    assert KEYS.verify(raw, NOW).epoch == 2**64 - 1
    assert raw != KEYS.sign(SAMPLE)
    at = raw.index(bytes([255] * 8))
    assert code_of(KEYS, raw[:at] + bytes(8) + raw[at + 8 :]) is ErrorCode.TICKET_INVALID


def test_a_ticket_of_the_first_form_is_not_taken_for_another() -> None:
    """Signed by the same key, without an epoch."""
    head = struct.pack("!BIBQIQ16s", 1, 1, Action.UPLOAD, NOW + 60, 3, 12345, AUDIENCE)
    body = head + b"\x04anna" + b"\x00\x10upload-id-16byte"
    assert code_of(KEYS, body + hmac.digest(OLD, body, "sha256")) is ErrorCode.TICKET_INVALID


def test_another_key_and_another_key_id_are_refused() -> None:
    assert code_of(KEYS, TicketKeys(AUDIENCE, {1: NEW}, 1).sign(SAMPLE)) is ErrorCode.TICKET_INVALID
    assert code_of(KEYS, TicketKeys(AUDIENCE, {2: OLD}, 2).sign(SAMPLE)) is ErrorCode.TICKET_INVALID


def test_two_tickets_cannot_be_mixed() -> None:
    one = KEYS.sign(SAMPLE)
    other = KEYS.sign(Ticket(Action.DOWNLOAD, "bert", b"upload-id-17byte", 99, NOW + 90, 4))
    assert len(one) == len(other)
    for at in range(1, len(one)):
        mixed = one[:at] + other[at:]
        if mixed not in (one, other):
            assert code_of(KEYS, mixed) is ErrorCode.TICKET_INVALID


def test_keys_overlap_during_a_rotation() -> None:
    before = KEYS.sign(SAMPLE)
    during = TicketKeys(AUDIENCE, {1: OLD, 2: NEW}, 2)
    after = TicketKeys(AUDIENCE, {2: NEW}, 2)
    assert during.verify(before, NOW) == SAMPLE
    assert during.verify(during.sign(SAMPLE), NOW) == after.verify(during.sign(SAMPLE), NOW) == SAMPLE
    assert code_of(KEYS, during.sign(SAMPLE)) is ErrorCode.TICKET_INVALID
    assert code_of(after, before) is ErrorCode.TICKET_INVALID


def test_a_ticket_expires() -> None:
    raw = KEYS.sign(SAMPLE)
    assert KEYS.verify(raw, SAMPLE.expires_at) == SAMPLE
    assert code_of(KEYS, raw, SAMPLE.expires_at + 1) is ErrorCode.TICKET_EXPIRED
    assert KEYS.verify(raw, SAMPLE.expires_at + 100, grace_seconds=100) == SAMPLE
    forged = raw[:-1] + bytes((raw[-1] ^ 1,))
    assert code_of(KEYS, forged, SAMPLE.expires_at + 1) is ErrorCode.TICKET_INVALID, "forged comes before expired"


@given(st.text(max_size=40) | st.text("AQgw-_+/=", max_size=12))
def test_a_word_has_one_spelling(word: str) -> None:
    raw = attempt(decode_ticket, word)
    assert raw is ErrorCode.TICKET_INVALID or (isinstance(raw, bytes) and encode_ticket(raw) == word)


@pytest.mark.parametrize("word", ["", "A", "AA==", "AB", "+/+/", "QQ\n", "é", "AAAAA", "A A="])
def test_another_spelling_is_refused(word: str) -> None:
    with pytest.raises(Refusal):
        decode_ticket(word)


def test_the_bounds_of_what_is_signed() -> None:
    longest = Ticket(Action.DOWNLOAD, "u" * 255, bytes(MAX_SCOPE_BYTES), 2**63 - 1, NOW)
    assert KEYS.verify(KEYS.sign(longest), NOW) == longest
    for user, scope in (("u" * 256, b""), ("é" * 128, b""), ("u", bytes(MAX_SCOPE_BYTES + 1))):
        with pytest.raises(ValueError, match="too long"):
            KEYS.sign(Ticket(Action.UPLOAD, user, scope, 1, NOW))


@pytest.mark.parametrize(
    ("audience", "keys", "signing"), [(b"a", {1: OLD}, 1), (AUDIENCE, {1: b"short"}, 1), (AUDIENCE, {1: OLD}, 2)]
)
def test_unusable_keys_are_refused(audience: bytes, keys: dict[int, bytes], signing: int) -> None:
    with pytest.raises(ValueError, match="key"):
        TicketKeys(audience, keys, signing)
