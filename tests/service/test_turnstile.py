"""Who may shake hands now, who waits, and who gives way."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine

from twinport_service.turnstile import Turnstile


class Guest:
    """Somebody who wants in, and what became of it."""

    def __init__(self, stile: Turnstile, seconds: float = 60.0, *, at_once: bool = False, network: str = "") -> None:
        self.state = "waits"
        self._at_once = at_once
        self.leave: Callable[[], None] = lambda: None
        stile.enter(self._begin, self._refuse, asyncio.get_running_loop().time() + seconds, network)

    def _begin(self, leave: Callable[[], None]) -> Callable[[], None]:
        self.state = "inside"
        self.leave = leave
        if self._at_once:
            self.state = "left"
            leave()
        return self._give_way

    def _refuse(self) -> None:
        self.state = "refused"

    def _give_way(self) -> None:
        self.state = "gave way"
        self.leave()


class LeapingLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while it works and leaps to the next timer when it would wait, on any machine alike."""

    class _Selector(selectors.DefaultSelector):
        waited_seconds = 0.0

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self.waited_seconds += timeout or 0.0
            return super().select(0)

    def __init__(self) -> None:
        self._leaping = self._Selector()
        super().__init__(self._leaping)

    def time(self) -> float:
        """Seconds since it was made."""
        return self._leaping.waited_seconds


def run(scenario: Coroutine[None, None, None]) -> None:
    """In a time that passes when nothing else happens, and within a bound: a guest who is forgotten fails the test."""
    loop = LeapingLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(scenario, 30))
    finally:
        loop.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until it holds."""
    while not condition():  # noqa: ASYNC110 (a guest has no event to wait for)
        await asyncio.sleep(0.001)


def test_places_are_taken_in_order_and_passed_on() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=2, waiting=10, hold_seconds=60)
        guests = [Guest(stile) for _ in range(4)]
        assert [guest.state for guest in guests] == ["inside", "inside", "waits", "waits"]
        assert (stile.inside, stile.waiting) == (2, 2)
        guests[1].leave()
        guests[1].leave()  # once more is no place more
        assert [guest.state for guest in guests] == ["inside", "inside", "inside", "waits"]
        guests[0].leave()
        guests[2].leave()
        guests[3].leave()
        assert (stile.inside, stile.waiting) == (0, 0)

    run(scenario())


def test_past_the_queue_the_oldest_of_the_network_that_has_most_is_refused() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=1, waiting=3, hold_seconds=60)
        guests = [Guest(stile) for _ in range(5)]
        assert [guest.state for guest in guests] == ["inside", "refused", "waits", "waits", "waits"]
        other = Guest(stile, network="other")
        assert [guest.state for guest in guests] == ["inside", "refused", "refused", "waits", "waits"]
        more = [Guest(stile) for _ in range(100)]
        assert other.state == "waits", "a crowd of one network pushes out its own"
        assert [guest.state for guest in more[-3:]] == ["refused", "waits", "waits"]
        stile.close()
        assert {guest.state for guest in (*guests, *more, other)} == {"inside", "refused"}

    run(scenario())


def test_networks_take_turns() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=1, waiting=10, hold_seconds=60)
        holder = Guest(stile, network="many")
        crowd = [Guest(stile, network="many") for _ in range(5)]
        other = Guest(stile, network="other")
        holder.leave()
        assert (crowd[0].state, other.state) == ("inside", "waits")
        crowd[0].leave()
        assert (crowd[1].state, other.state) == ("waits", "inside")

    run(scenario())


def test_a_crowd_that_gets_nowhere_does_not_take_the_place_of_who_came_from_elsewhere() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=4, waiting=20, hold_seconds=0.02)
        for _ in range(20):
            Guest(stile, network="many")
        other = Guest(stile, network="other")
        await until(lambda: other.state == "inside")
        for _ in range(100):
            Guest(stile, network="many")
            await asyncio.sleep(0.001)
        assert other.state == "inside"
        other.leave()

    run(scenario())


def test_a_place_is_held_the_shorter_the_more_wait() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=1, waiting=1000, hold_seconds=2)
        holder = Guest(stile)
        began = asyncio.get_running_loop().time()
        for _ in range(999):
            Guest(stile)
        await until(lambda: holder.state == "gave way")
        assert 0.05 < asyncio.get_running_loop().time() - began < 1.5
        stile.close()

    run(scenario())


def test_who_gets_nowhere_gives_way_to_who_waits_the_oldest_first() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=2, waiting=10, hold_seconds=0.05)
        first, second = Guest(stile), Guest(stile)
        await asyncio.sleep(0.06)
        assert first.state == second.state == "inside", "nobody waits, so nobody is in the way"
        third = Guest(stile)
        assert (first.state, second.state, third.state) == ("gave way", "inside", "inside")
        fourth, fifth = Guest(stile), Guest(stile)
        assert (second.state, third.state, fourth.state, fifth.state) == ("gave way", "inside", "inside", "waits")
        began = asyncio.get_running_loop().time()
        await until(lambda: fifth.state == "inside")
        assert asyncio.get_running_loop().time() - began > 0.02, "each has its moment"
        assert third.state == "gave way"
        assert stile.inside == 2

    run(scenario())


def test_a_turn_that_does_not_come_in_time_is_refused() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=1, waiting=10, hold_seconds=60)
        inside, late = Guest(stile), Guest(stile, 0.02)
        await until(lambda: late.state == "refused")
        assert inside.state == "inside"
        assert stile.waiting == 0

    run(scenario())


def test_many_that_end_as_soon_as_they_begin_do_not_pile_up() -> None:
    async def scenario() -> None:
        stile = Turnstile(at_once=1, waiting=5000, hold_seconds=60)
        holder = Guest(stile)
        guests = [Guest(stile, at_once=True) for _ in range(3000)]
        holder.leave()
        assert {guest.state for guest in guests} == {"left"}
        assert (stile.inside, stile.waiting) == (0, 0)

    run(scenario())
