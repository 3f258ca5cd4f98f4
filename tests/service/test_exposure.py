"""To whom a server opens itself: the whole table, and the reasons that are told."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from twinport_service.config import ConfigError, Settings
from twinport_service.exposure import Exposure, decide_exposure, is_loopback

LOOPBACK, PUBLIC = "127.0.0.1", "192.0.2.1"
NOBODY, ACCOUNTS, ALSO_ANONYMOUS = (False, False), (True, False), (True, True)


def decide(people: tuple[bool, bool], **changes: object) -> Exposure:
    """The decision for a population: are there accounts, and may somebody without one do something."""
    settings = replace(Settings(), **changes)  # type: ignore[arg-type]
    return decide_exposure(settings, has_accounts=people[0], has_anonymous=people[1])


# What is served is T for TLS, P for plaintext, C for classic; a login is - for none, o for offered, r for required.
TABLE = [
    (LOOPBACK, False, "auto", NOBODY, "TPC", "-"),
    (LOOPBACK, False, "auto", ACCOUNTS, "TP", "r"),
    (LOOPBACK, False, "auto", ALSO_ANONYMOUS, "TP", "o"),
    (LOOPBACK, False, "on", NOBODY, "T", "-"),
    (LOOPBACK, False, "on", ACCOUNTS, "T", "r"),
    (LOOPBACK, False, "off", NOBODY, "PC", "-"),
    (LOOPBACK, False, "off", ACCOUNTS, "P", "r"),
    (PUBLIC, False, "auto", NOBODY, None, "user add"),
    (PUBLIC, False, "auto", ACCOUNTS, "T", "r"),
    (PUBLIC, False, "auto", ALSO_ANONYMOUS, "T", "o"),
    (PUBLIC, False, "on", NOBODY, None, "user add"),
    (PUBLIC, False, "on", ACCOUNTS, "T", "r"),
    (PUBLIC, False, "off", NOBODY, None, "without TLS"),
    (PUBLIC, False, "off", ACCOUNTS, None, "without TLS"),
    (LOOPBACK, True, "auto", NOBODY, "TPC", "-"),
    (PUBLIC, True, "auto", NOBODY, "TPC", "-"),
    (PUBLIC, True, "auto", ACCOUNTS, "TPC", "o"),
    (PUBLIC, True, "on", NOBODY, "T", "-"),
    (PUBLIC, True, "off", NOBODY, "PC", "-"),
    (PUBLIC, True, "off", ACCOUNTS, "PC", "o"),
]


@pytest.mark.parametrize(("host", "opened", "tls", "people", "served", "login"), TABLE)
def test_the_table(
    host: str, opened: bool, tls: str, people: tuple[bool, bool], served: str | None, login: str
) -> None:
    if served is None:
        with pytest.raises(ConfigError, match=login) as refused:
            decide(people, host=host, open=opened, tls=tls)
        assert "--open" in str(refused.value)
        return
    found = decide(people, host=host, open=opened, tls=tls)
    assert (found.tls, found.plaintext, found.classic) == ("T" in served, "P" in served, "C" in served)
    assert (found.login_required, found.login_offered) == (login == "r", login in "or")
    assert bool(found.warnings) is opened


@pytest.mark.parametrize(
    ("host", "opened", "tls", "people", "told"),
    [
        (LOOPBACK, False, "auto", NOBODY, None),
        (LOOPBACK, False, "off", NOBODY, None),
        (LOOPBACK, False, "auto", ACCOUNTS, "no login"),
        (LOOPBACK, False, "auto", ALSO_ANONYMOUS, "no login"),
        (LOOPBACK, False, "on", NOBODY, "--tls on"),
        (PUBLIC, False, "auto", ACCOUNTS, "others can reach"),
        (PUBLIC, True, "auto", NOBODY, None),
        (PUBLIC, True, "auto", ACCOUNTS, None),
        (PUBLIC, True, "on", NOBODY, "--tls on"),
    ],
)
def test_the_classic_dialect_on_demand(
    host: str, opened: bool, tls: str, people: tuple[bool, bool], told: str | None
) -> None:
    if told is None:
        assert decide(people, host=host, open=opened, tls=tls, classic=True).classic
        return
    with pytest.raises(ConfigError, match=told) as refused:
        decide(people, host=host, open=opened, tls=tls, classic=True)
    assert "--classic" in str(refused.value)


def test_whatever_is_asked_for_nobody_is_let_in_by_mistake() -> None:
    everything = itertools.product(
        (LOOPBACK, "::1", PUBLIC, "0.0.0.0", "::", "files.example"),  # noqa: S104 (only decided about)
        ("auto", "on", "off"),
        (None, True, False),
        (NOBODY, ACCOUNTS, ALSO_ANONYMOUS),
    )
    for host, tls, classic, people in everything:
        try:
            found = decide(people, host=host, tls=tls, classic=classic)
        except ConfigError:
            continue
        assert found.tls or found.plaintext
        assert not found.plaintext or is_loopback(host), "plaintext only where nobody listens in"
        assert found.login_offered or is_loopback(host), "a server for others has accounts"
        assert not found.classic or (found.plaintext and not people[0]), (
            "the classic dialect knows neither TLS nor login"
        )
        assert classic is None or found.classic is classic
        assert not found.warnings


def test_a_switched_off_dialect_stays_off() -> None:
    assert not decide(NOBODY, classic=False).classic
    assert not decide(NOBODY, host=PUBLIC, open=True, classic=False).classic


def test_the_warning_of_an_open_server_says_who_may_do_what() -> None:
    (told,) = decide(NOBODY, host=PUBLIC, open=True).warnings
    assert PUBLIC in told
    assert "without login" in told
    assert "can be read on the way" in told
    assert "can be read" not in decide(NOBODY, host=PUBLIC, open=True, tls="on").warnings[0]
    assert "on this machine" in decide(NOBODY, open=True).warnings[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_what_only_this_machine_reaches(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "0.0.0.0", "::", "", "::ffff:8.8.8.8", "127.0.0.1.example.org", "localhost.example.org"],  # noqa: S104
)
def test_what_others_may_reach(host: str) -> None:
    assert not is_loopback(host)
