"""The guard that every test runs under sees what it should see."""

from __future__ import annotations

import os
import socket
import threading

from tests.conftest import Baseline


def test_a_descriptor_left_open_is_a_leak_until_it_is_closed() -> None:
    baseline = Baseline()
    with socket.socket() as opened:
        (leak,) = baseline.await_no_leaks(grace_seconds=0)
        assert leak.startswith(f"descriptor {opened.fileno()}: socket:")
    assert baseline.await_no_leaks(grace_seconds=0) == []


def test_a_running_thread_is_a_leak_until_it_ends() -> None:
    baseline = Baseline()
    enough = threading.Event()
    thread = threading.Thread(target=enough.wait, name="lingering")
    thread.start()
    assert baseline.await_no_leaks(grace_seconds=0) == ["thread lingering"]
    enough.set()
    assert baseline.await_no_leaks() == []
    thread.join()


def test_what_closes_within_the_grace_is_no_leak() -> None:
    baseline = Baseline()
    opened = os.open(os.devnull, os.O_RDONLY)
    closer = threading.Timer(0.05, os.close, (opened,))
    closer.start()
    assert baseline.await_no_leaks() == []
    closer.join()


def test_a_descriptor_replaced_by_another_is_no_leak() -> None:
    first = os.open(os.devnull, os.O_RDONLY)
    baseline = Baseline()
    second = os.open("/", os.O_RDONLY)
    os.close(first)
    assert baseline.leaks() == []
    os.close(second)
