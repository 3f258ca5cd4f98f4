"""The command ``doctor``: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import socket

import pytest

from tests.client.conftest import RunCommand
from tests.client.servers import ServerProcess


def test_a_server_that_is_well_fits_on_one_screen(run_command: RunCommand, shared_server: ServerProcess) -> None:
    code, shown, said = run_command("doctor", shared_server.host, COLUMNS="80")
    assert (code, said) == (0, "")
    lines = shown.splitlines()
    assert lines[0] == f"twinport doctor: {shared_server.host}"
    assert lines[-1] == "Everything works."
    assert len(lines) < 24
    assert max(map(len, lines)) < 80
    assert "\x1b" not in shown


def test_what_fails_is_named_with_its_next_step(run_command: RunCommand) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        code, shown, said = run_command("--host", f"127.0.0.1:{reserved.getsockname()[1]}", "doctor", COLUMNS="80")
    assert (code, said) == (5, "")
    lines = shown.splitlines()
    assert lines[4].startswith("  FAILED  control port  ")
    assert "control port [PortRefused]" in lines
    assert any(line.startswith("    Next: look on the server: systemctl status twinportd") for line in lines)
    assert len(lines) < 24
    assert max(map(len, lines)) < 80


def test_programs_get_one_object(run_command: RunCommand, shared_server: ServerProcess) -> None:
    code, shown, said = run_command("doctor", shared_server.host, "--json")
    assert (code, said) == (0, "")
    found = json.loads(shown)
    assert (found["schema"], found["address"]) == (1, shared_server.host)
    assert [one["layer"] for one in found["findings"]] == [
        "name", "route", "control port", "server", "login", "version", "data port", "clock", "transfer", "space",
    ]  # fmt: skip
    assert {one["status"] for one in found["findings"]} == {"ok"}

    code, shown, _ = run_command("doctor", "no-such-host.invalid", "--json")
    assert code == 5
    first, *others = json.loads(shown)["findings"]
    assert (first["status"], first["code"]) == ("failed", "NameUnknown")
    assert first["meaning"]
    assert first["next_step"]
    assert {one["status"] for one in others} == {"untried"}


@pytest.mark.parametrize("host", ["foo..bar", f"{'a' * 64}.example.org", ".x"])
def test_a_mistyped_name_is_no_name(run_command: RunCommand, host: str) -> None:
    code, shown, said = run_command("doctor", host)
    assert (code, said) == (5, "")
    assert "name [NameUnknown]" in shown.splitlines()
    code, _, said = run_command("--host", host, "--plaintext", "ls")
    assert (code, said.count("\n")) == (5, 1)


def test_quiet_is_quiet_about_what_is_well(run_command: RunCommand, shared_server: ServerProcess) -> None:
    assert run_command("doctor", "-q", shared_server.host) == (0, "", "")
    code, shown, _ = run_command("doctor", "-q", "no-such-host.invalid")
    assert code == 5
    assert shown.startswith("  FAILED  name ")
