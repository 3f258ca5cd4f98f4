"""How many may come at once: what is counted, who gives way, and that nothing is remembered of those who left."""

from __future__ import annotations

import random
import threading

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_service.access import ANONYMOUS
from twinport_service.limits import CHANNEL_BOUNDS, Admission, Crowd, CrowdBounds


def peer(address: str) -> tuple[str, int]:
    """A peer name."""
    return (address, 40000)


class Visitors:
    """Connections of a crowd, and which of them had to give way."""

    def __init__(self, bounds: CrowdBounds, seed: int = 1) -> None:
        self.crowd = Crowd(bounds, random.Random(seed).random)
        self.gone: list[str] = []

    def come(self, address: str, name: str = "") -> Admission:
        """One more."""
        return self.crowd.admit(peer(address), lambda: self.gone.append(name or address))

    def refused(self, address: str) -> Refusal:
        """One that must be refused."""
        with pytest.raises(Refusal) as refused:
            self.come(address)
        return refused.value


def test_the_513th_of_one_address_is_refused_and_others_are_not() -> None:
    visitors = Visitors(CrowdBounds(unproved=100_000))
    places = [visitors.come("192.0.2.7") for _ in range(512)]
    refusal = visitors.refused("192.0.2.7")
    assert (refusal.code, refusal.retry_seconds) == (ErrorCode.BUSY, 5)
    visitors.come("192.0.2.8")
    places[0].close()
    visitors.come("192.0.2.7")
    visitors.refused("::ffff:192.0.2.7")


def test_one_of_many_addresses_in_a_64_is_the_same() -> None:
    visitors = Visitors(CrowdBounds(per_address=4, unproved=100))
    for number in range(4):
        visitors.come(f"2001:db8::{number + 1}")
    visitors.refused("2001:db8::ffff")
    visitors.come("2001:db8:0:1::1")


def test_loopback_counts_in_all_only_unless_told_otherwise() -> None:
    visitors = Visitors(CrowdBounds(total=8, per_address=2, unproved=100))
    for _ in range(8):
        visitors.come("127.0.0.1")
    assert visitors.refused("192.0.2.1").detail == "too many in all"
    strict = Visitors(CrowdBounds(per_address=2, unproved=100, loopback_exempt=False))
    strict.come("127.0.0.5")
    strict.come("127.0.0.5")
    strict.refused("127.0.0.5")


def test_a_user_has_a_bound_and_anonymous_has_none() -> None:
    visitors = Visitors(CrowdBounds(per_user=2))
    mine = [visitors.come("192.0.2.1") for _ in range(3)]
    mine[0].prove("alice")
    mine[0].prove("alice")
    mine[1].prove("alice")
    with pytest.raises(Refusal) as refused:
        mine[2].prove("alice")
    assert refused.value.code is ErrorCode.BUSY
    assert visitors.crowd.unproved_count == 1, "who was refused has not proved anything"
    mine[0].close()
    mine[2].prove("alice")
    for _ in range(10):
        visitors.come("192.0.2.2").prove(ANONYMOUS)


def test_a_connection_that_shows_another_user_is_that_users() -> None:
    visitors = Visitors(CrowdBounds(per_user=1))
    one, other = visitors.come("192.0.2.1"), visitors.come("192.0.2.1")
    one.prove("alice")
    one.prove("bob")
    other.prove("alice")
    with pytest.raises(Refusal):
        other.prove("bob")
    assert other.user == "alice"


def test_nothing_is_remembered_of_those_who_left() -> None:
    """A million addresses, sixteen at a time."""
    visitors = Visitors(CrowdBounds())
    places: list[Admission] = []
    for number in range(20_000):
        places.append(visitors.come(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
        if number % 3 == 0:
            places[-1].prove(f"user{number}")
        if len(places) == 16:
            for place in places:
                place.close()
                place.close()
            places.clear()
            assert (visitors.crowd.count, visitors.crowd.unproved_count, visitors.crowd.table_size) == (0, 0, 0)


def test_who_keeps_places_without_proving_anything_loses_them() -> None:
    """An attacker with one address, then one honest visitor for each of his: the honest ones stay."""
    visitors = Visitors(CrowdBounds(unproved=64))
    for _ in range(500):
        visitors.come("192.0.2.66")
    assert visitors.crowd.unproved_count <= 64
    for number in range(200):
        visitor = visitors.come(f"198.51.100.{number}", "honest")
        visitors.come("192.0.2.66")
        visitor.prove("alice" if number < 100 else "bob")
    assert "honest" not in visitors.gone
    assert len(visitors.gone) >= 500 + 200 - 64


def test_giving_way_begins_at_half_and_is_sure_at_the_bound() -> None:
    visitors = Visitors(CrowdBounds(unproved=100, per_address=10_000))
    for _ in range(51):
        visitors.come("192.0.2.1")
    assert visitors.gone == []
    fullest = 0
    for _ in range(5000):
        visitors.come("192.0.2.1")
        fullest = max(fullest, visitors.crowd.unproved_count)
    assert 51 < fullest <= 100, "at random before the bound, and never past it"


def test_of_many_equal_addresses_the_newcomers_own_gives_way() -> None:
    visitors = Visitors(CrowdBounds(unproved=4, early=False))
    for number in range(4):
        visitors.come(f"192.0.2.{number}")
    visitors.come("192.0.2.2")
    assert visitors.gone == ["192.0.2.2"]


def test_of_channels_the_oldest_gives_way_and_not_before_the_bound() -> None:
    visitors = Visitors(CHANNEL_BOUNDS)
    for number in range(64):
        visitors.come("192.0.2.1", f"number {number}")
    assert visitors.gone == []
    visitors.come("192.0.2.1", "newest")
    visitors.come("192.0.2.1", "newest")
    assert visitors.gone == ["number 0", "number 1"]
    assert visitors.crowd.count == 64


def test_who_gave_way_closes_without_harm_and_proves_nothing() -> None:
    visitors = Visitors(CrowdBounds(unproved=1, early=False))
    first = visitors.come("192.0.2.1")
    visitors.come("192.0.2.1")
    first.prove("alice")
    first.close()
    assert (visitors.crowd.count, visitors.crowd.unproved_count) == (1, 1)


def test_threads_come_and_go_and_the_count_is_right() -> None:
    visitors = Visitors(CrowdBounds(unproved=8, per_address=10_000))

    def come_and_go() -> None:
        for number in range(500):
            place = visitors.come("192.0.2.1")
            if number % 2:
                place.prove("alice")
            place.close()

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (visitors.crowd.count, visitors.crowd.unproved_count, visitors.crowd.table_size) == (0, 0, 0)


# the anonymous -------------------------------------------------------------------------------------------------------


def test_the_anonymous_leave_a_tenth_to_those_who_log_in() -> None:
    visitors = Visitors(CrowdBounds(total=20, unproved=100))
    for number in range(18):
        visitors.come(f"192.0.2.{number}").prove(ANONYMOUS)
    late = visitors.come("192.0.2.100")
    with pytest.raises(Refusal) as refused:
        late.prove(ANONYMOUS)
    assert (refused.value.code, refused.value.detail) == (ErrorCode.BUSY, "too many anonymous ones")
    late.prove("alice")
    assert (visitors.crowd.anonymous_count, visitors.gone) == (18, [])
    visitors.come("192.0.2.101").prove("bob")
    assert visitors.refused("192.0.2.102").detail == "too many in all", "none is cut for another of as many"


def test_an_address_with_many_anonymous_ones_makes_room_for_others() -> None:
    """Twenty addresses fill every place; whoever comes from elsewhere gets in, logs in or not, and stays."""
    visitors = Visitors(CrowdBounds(total=200, per_address=10, unproved=200))
    for number in range(20):
        for _ in range(10):
            place = visitors.come(f"192.0.2.{number}")
            if visitors.crowd.anonymous_count < visitors.crowd.bounds.anonymous:
                place.prove(ANONYMOUS)
    for number in range(30):
        visitors.come(f"198.51.100.{number}", "honest").prove(ANONYMOUS)
        visitors.come(f"203.0.113.{number}", "honest").prove("alice")
    assert "honest" not in visitors.gone
    assert visitors.crowd.anonymous_count <= 180
    assert visitors.crowd.count <= 200


def test_an_anonymous_one_who_logs_in_is_no_longer_one() -> None:
    visitors = Visitors(CrowdBounds(total=10))
    place = visitors.come("192.0.2.1")
    place.prove(ANONYMOUS)
    place.prove("alice")
    assert visitors.crowd.anonymous_count == 0
    place.prove(ANONYMOUS)
    place.close()
    assert (visitors.crowd.anonymous_count, visitors.crowd.count, visitors.crowd.table_size) == (0, 0, 0)
