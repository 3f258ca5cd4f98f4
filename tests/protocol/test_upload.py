"""The upload state machine: every pair of state and event is in the table or refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.upload import TRANSITIONS, UploadEvent, UploadState, advance, check_generation

# Written again by hand: what an upload may do, and where that leads.
MAY = {
    "open": {"put": "open", "resume": "open", "commit": "committing", "abort": "aborted"},
    "committing": {"incomplete": "open", "published": "done"},
    "done": {},
    "aborted": {},
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(UploadState, UploadEvent)))
def test_every_pair_is_in_the_table_or_refused(state: UploadState, event: UploadEvent) -> None:
    expected = MAY[state.value].get(event.value)
    if expected is not None:
        assert advance(state, event).value == expected
        return
    assert (state, event) not in TRANSITIONS
    with pytest.raises(Refusal) as caught:
        advance(state, event)
    assert caught.value.code is ErrorCode.UPLOAD_CLOSED


@given(st.lists(st.sampled_from(list(UploadEvent)), max_size=40))
def test_the_ends_are_final_and_nothing_is_published_but_by_a_commit(events: list[UploadEvent]) -> None:
    state = UploadState.OPEN
    for event in events:
        before = state
        try:
            state = advance(state, event)
        except Refusal:
            assert state is before
        if before in (UploadState.DONE, UploadState.ABORTED):
            assert state is before
        if state is UploadState.DONE and before is not state:
            assert before is UploadState.COMMITTING


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_only_the_generation_that_holds_the_lease_may_write(held: int, presented: int) -> None:
    if held == presented:
        check_generation(held, presented)
        return
    with pytest.raises(Refusal) as caught:
        check_generation(held, presented)
    assert caught.value.code is ErrorCode.FENCED
