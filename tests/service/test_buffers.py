"""The pool of buffers: bounded, and never a reason to wait."""

from __future__ import annotations

from twinport_service.buffers import SMALL_BYTES, BufferPool

LARGE_BYTES = 512 * 1024


def test_only_so_many_large_buffers_are_out_at_once() -> None:
    pool = BufferPool(LARGE_BYTES, keep=2, large_at_once=3)
    taken = [pool.take() for _ in range(1000)]
    assert [len(buffer) for buffer in taken] == [LARGE_BYTES] * 3 + [SMALL_BYTES] * 997
    pool.give(taken[5])
    assert len(pool.take()) == SMALL_BYTES, "a small one makes no room for a large one"
    pool.give(taken[0])
    assert len(pool.take()) == LARGE_BYTES


def test_a_few_are_kept_and_lent_again() -> None:
    pool = BufferPool(LARGE_BYTES, keep=2)
    taken = [pool.take() for _ in range(3)]
    for buffer in taken:
        pool.give(buffer)
    again = [pool.take() for _ in range(3)]
    assert sum(any(buffer is known for known in taken) for buffer in again) == 2


def test_a_pool_of_small_buffers_has_no_smaller_ones() -> None:
    pool = BufferPool(1024, keep=0, large_at_once=1)
    assert {len(pool.take()) for _ in range(5)} == {1024}
