"""Allowances: room is drawn in lumps, spent in memory, and given back to the last byte."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_service.allowance import LUMP_BYTES, LUMP_FILES, Allowance
from twinport_service.ledger_memory import MemoryLedger


class Quota(MemoryLedger):
    """A ledger with a quota, which counts what it is asked."""

    def __init__(self, size_bytes: int, files: int) -> None:
        super().__init__()
        self.left = Counter(bytes=size_bytes, files=files)
        self.draws = 0

    def draw(self, user: str, size_bytes: int, files: int) -> bool:
        """See the contract."""
        with self._lock:
            self.draws += 1
            if size_bytes > self.left["bytes"] or files > self.left["files"]:
                return False
            self.left.subtract({"bytes": size_bytes, "files": files})
            return True

    def give_back(self, user: str, size_bytes: int, files: int) -> None:
        """See the contract."""
        with self._lock:
            self.left.update(bytes=size_bytes, files=files)


def test_small_files_cost_no_draw_each() -> None:
    ledger = Quota(10 * LUMP_BYTES, 10 * LUMP_FILES)
    allowance = Allowance(ledger, "u")
    for _ in range(LUMP_FILES):
        allowance.spend(100)
    assert ledger.draws == 1
    allowance.spend(100)
    assert ledger.draws == 2


def test_the_last_byte_and_the_last_file_can_be_spent_and_no_more() -> None:
    ledger = Quota(1000, 2)
    allowance = Allowance(ledger, "u")
    allowance.spend(400)
    allowance.spend(600)
    for size in (0, 1, 2**63):
        with pytest.raises(Refusal) as refused:
            allowance.spend(size)
        assert refused.value.code is ErrorCode.QUOTA_EXCEEDED
    allowance.refund(600)
    with pytest.raises(Refusal):
        allowance.spend(601)
    allowance.spend(600)


def test_what_was_not_spent_goes_back_at_the_end() -> None:
    ledger = Quota(10 * LUMP_BYTES, 10 * LUMP_FILES)
    allowance = Allowance(ledger, "u")
    allowance.spend(123)
    allowance.close()
    allowance.close()
    assert ledger.left == Counter(bytes=10 * LUMP_BYTES - 123, files=10 * LUMP_FILES - 1)


@given(
    st.integers(0, 3 * LUMP_BYTES),
    st.integers(0, 600),
    st.lists(st.tuples(st.booleans(), st.integers(0, LUMP_BYTES)), max_size=60),
)
def test_nothing_is_ever_lost_or_made(size_bytes: int, files: int, turns: list[tuple[bool, int]]) -> None:
    ledger = Quota(size_bytes, files)
    allowance = Allowance(ledger, "u")
    kept: list[int] = []
    for spends, size in turns:
        if spends:
            try:
                allowance.spend(size)
            except Refusal:
                continue
            kept.append(size)
        elif kept:
            allowance.refund(kept.pop())
        assert sum(kept) <= size_bytes
        assert len(kept) <= files
    allowance.close()
    assert ledger.left == Counter(bytes=size_bytes - sum(kept), files=files - len(kept))


def test_sessions_of_one_user_share_a_quota_exactly() -> None:
    ledger = Quota(10_000, 100)
    spent: list[int] = []

    def session() -> None:
        allowance = Allowance(ledger, "u")
        for _ in range(50):
            try:
                allowance.spend(70)
            except Refusal:
                break
            spent.append(70)
        allowance.close()

    threads = [threading.Thread(target=session) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(spent) <= 10_000
    assert len(spent) <= 100
    assert ledger.left == Counter(bytes=10_000 - sum(spent), files=100 - len(spent))
