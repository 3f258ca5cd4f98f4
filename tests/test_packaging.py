"""What an installation of Twinport is: its commands, its extras, its packages."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

DISTRIBUTION = importlib.metadata.distribution("twinport")
SERVER_ONLY = {"structlog", "tomli"}
AWS_ONLY = {"boto3", "paramiko"}


def requirements(extra: str | None) -> set[str]:
    """The distributions that an extra asks for; without one, those of the plain client."""
    found = set()
    for line in DISTRIBUTION.requires or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        wanted = re.search(r"""extra\s*==\s*["']([a-z0-9]+)["']""", line)
        assert name is not None, line
        if (wanted.group(1) if wanted else None) == extra:
            found.add(name.group())
    return found


def test_the_client_asks_for_no_server_or_aws_packages() -> None:
    plain = requirements(None)
    assert "blake3" in plain
    assert plain & (SERVER_ONLY | AWS_ONLY) == set()


def test_the_server_asks_for_no_aws_packages() -> None:
    service = requirements("service")
    assert "structlog" in service
    assert service & AWS_ONLY == set()


def test_every_promised_extra_exists() -> None:
    assert {"service", "s3", "infra", "dev"} <= set(DISTRIBUTION.metadata.get_all("Provides-Extra") or [])


@pytest.mark.parametrize("command", ["twinport", "twinportd"])
def test_the_commands_can_be_loaded(command: str) -> None:
    (entry,) = DISTRIBUTION.entry_points.select(group="console_scripts", name=command)
    assert callable(entry.load())
