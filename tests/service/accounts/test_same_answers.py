"""A stranger cannot tell the name of a user from any other: whatever they try, both are answered alike, and as late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from queue import SimpleQueue

import pytest
from argon2 import PasswordHasher
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twinport_protocol.auth import login_message
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_service.accounts.authenticator import Authenticator, LoggedIn, LoginRequest
from twinport_service.accounts.held_answers import HELD_SECONDS, FirstAnswer, HeldAnswers
from twinport_service.accounts.passwords import PasswordDesk
from twinport_service.accounts.store import AccountStore
from twinport_service.accounts.throttle import NETWORK_BURST, USER_BURST, Throttle

from tests.service.accounts.conftest import NONCE, PASSWORD, SshKey
from tests.service.accounts.test_throttle import Clock
from tests.service.raw_client import await_true

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.1"
SERVER_NONCE = "91e0" * 8
Outcome = tuple[str, "int | None", float]
"""The code, the seconds that it says, and when it came."""


class PromptDesk(PasswordDesk):
    """Checks at once, so that all that is left of time is what the clock says."""

    def submit(self, user: str, password_hash: str | None, password: str, on_done: Callable[[bool], None]) -> None:
        on_done(self.check(user, password_hash, password))


class Later(HeldAnswers):
    """Answers when a clock that only the test moves says so."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock
        self._held: list[tuple[float, Callable[[], object]]] = []

    def hold(self, answer: Callable[[], object]) -> None:
        self._held.append((self._now() + HELD_SECONDS, answer))

    def give(self) -> None:
        """All, at their times, which the clock goes back from."""
        held, self._held = self._held, []
        now = self._now.now
        for due, answer in held:
            self._now.now = due
            answer()
        self._now.now = now

    def close(self) -> None:
        self.give()


class World:
    """A server as it begins, and what a stranger is answered who tries one name."""

    def __init__(self, store: AccountStore, hasher: PasswordHasher, name: str, word: str) -> None:
        self.name = name
        self.clock = Clock()
        self.later = Later(self.clock)
        self.word = word
        desk = PromptDesk(store.replace_password_hash, hasher=hasher)
        self.authenticator = Authenticator(store, Throttle(self.clock), desk, held=self.later)

    def ask(self, method: str, host: str, **options: str) -> Outcome:
        """What is answered, and when."""
        outcomes: SimpleQueue[tuple[LoggedIn | Refusal, float]] = SimpleQueue()
        began = self.clock.now
        request = LoginRequest(method, options, SERVER_NONCE, NONCE, None, (host, 5001))
        self.authenticator.authenticate(request, lambda outcome: outcomes.put((outcome, self.clock.now)))
        if method == "password":
            self.later.give()
        outcome, at = outcomes.get(timeout=30)
        assert outcomes.empty(), "answered once"
        if isinstance(outcome, LoggedIn):
            return "in", None, at - began
        return outcome.code.value, outcome.retry_seconds, at - began

    def try_it(self, method: str, host: str) -> Outcome:
        """A wrong try of the name."""
        options = {
            "password": {"user": self.name, "password": "wrong password"},
            "key": {"user": self.name, "signature": self.word},
            "token": {"user": self.name, "token": f"tp_{'0' * 16}_{'A' * 43}"},
        }
        return self.ask(method, host, **options[method])

    def play(self, steps: list[tuple[str, str, int]]) -> list[Outcome]:
        """What the stranger is answered. What the owner of the name does is done where there is one."""
        found = []
        for what, host, number in steps:
            if what == "wait":
                self.clock.pass_by(number / 2)
            elif what == "owner":
                if self.name == "alice":
                    self.ask("password", host, user="alice", password=PASSWORD)
            elif what == "others":
                for other in range(number):
                    found.append(self.ask("password", host, user=f"other{other}", password="wrong password"))
            else:
                found += [self.try_it(what, host) for _ in range(number)]
        return found


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["password", "password", "owner", "others", "wait", "key", "token"]),
        st.sampled_from([HOME, HOME, ELSEWHERE]),
        st.sampled_from([1, 1, 2, 3, 5, 60]),
    ),
    max_size=25,
)
Play = Callable[[list[tuple[str, str, int]]], tuple[list[Outcome], list[Outcome]]]


@pytest.fixture
def world(
    store: AccountStore,
    add: Callable[..., None],
    hasher: PasswordHasher,
    ssh_keys: Callable[[str], SshKey],
) -> Iterator[Callable[[str], World]]:
    """Begins a world for a name; ``alice`` is the one that is known."""
    add("alice", keys=(ssh_keys("ed25519").public,))
    store.refresh(force=True)
    words = {
        name: ssh_keys("ed25519/other").word(login_message(name, SERVER_NONCE, NONCE, None))
        for name in ("alice", "nobody")
    }
    with ExitStack() as stack:

        def begin(name: str) -> World:
            found = World(store, hasher, name, words[name])
            stack.enter_context(closing(found.authenticator))
            return found

        yield begin


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
@example(steps=[("owner", HOME, 1), ("others", HOME, 60), ("password", HOME, 3)])
@example(steps=[("owner", HOME, 1), ("password", ELSEWHERE, 60), ("password", HOME, 3)])
@example(steps=[("password", HOME, 1), ("wait", HOME, 2), ("owner", HOME, 1), ("password", HOME, 2)])
@example(steps=[("owner", HOME, 1), *[("password", HOME, 1), ("wait", HOME, 60)] * 5, ("others", HOME, 60)])
def test_known_and_unknown_names_are_answered_alike(
    world: Callable[[str], World], steps: list[tuple[str, str, int]]
) -> None:
    known, unknown = world("alice"), world("nobody")
    assert known.play(steps) == unknown.play(steps)


def test_the_owner_gets_in_where_strangers_have_used_up_the_guesses(world: Callable[[str], World]) -> None:
    alice = world("alice")
    right = {"user": "alice", "password": PASSWORD}
    assert alice.ask("password", HOME, **right) == ("in", None, 0.0)
    alice.play([("others", HOME, NETWORK_BURST), ("password", ELSEWHERE, USER_BURST)])
    assert alice.try_it("password", HOME) == (ErrorCode.LOCKED.value, 1, HELD_SECONDS)
    alice.clock.pass_by(1)
    alice.play([("others", HOME, 1)])
    assert alice.ask("password", HOME, **right) == ("in", None, 0.0), "at once"
    assert alice.ask("password", ELSEWHERE + "1", **right)[0] == "in", "another network has guesses of its own"


def test_tries_that_are_not_even_looked_at_are_answered_as_late(world: Callable[[str], World]) -> None:
    nobody = world("nobody")
    nobody.play([("others", HOME, NETWORK_BURST)])
    assert nobody.try_it("password", HOME) == (ErrorCode.LOCKED.value, 1, HELD_SECONDS)


# held answers --------------------------------------------------------------------------------------------------------


def test_held_answers_come_in_their_order_and_not_before_their_time() -> None:
    clock = Clock()
    given: list[int] = []
    with closing(HeldAnswers(0.05, clock)) as held:
        for number in range(3):
            held.hold(lambda number=number: given.append(number))  # type: ignore[misc]
        held.hold(lambda: None)
        assert given == []
        clock.pass_by(0.05)
        await_true(lambda: given == [0, 1, 2])


def test_at_the_end_all_are_given_at_once() -> None:
    given: list[int] = []
    held = HeldAnswers(3600.0)
    held.hold(lambda: given.append(1))
    held.close()
    held.hold(lambda: given.append(2))
    held.close()
    assert given == [1, 2]


def test_of_several_answers_the_first_is_given() -> None:
    given: list[object] = []
    first = FirstAnswer(given.append)
    assert first.give("one")
    assert not first.give("two")
    assert given == ["one"]
