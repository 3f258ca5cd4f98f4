"""The arrows between the rooms: service -> protocol <- client, infra alone; and what may be written in none of them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOMS = {
    "twinport_protocol": PROJECT / "protocol",
    "twinport_service": PROJECT / "service",
    "twinport": PROJECT / "client",
    "twinport_infra": PROJECT / "infra",
}
MAY_IMPORT = {
    "twinport_protocol": {"blake3"},
    "twinport_service": {
        "twinport_protocol",
        "argon2",
        "blake3",
        "click",
        "cryptography",
        "structlog",
        "tomli",
        "tomllib",
    },
    "twinport": {"twinport_protocol", "blake3", "click", "cryptography", "keyring", "platformdirs"},
    "twinport_infra": {"boto3", "botocore", "paramiko", "click"},
}
# Bytes in, events out: whatever waits, counts time, draws lots or touches the system belongs to the other rooms.
NOT_IN_PROTOCOL = {
    "asyncio", "concurrent", "ctypes", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "random",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile",
    "threading", "time",
}  # fmt: skip
# A constant such as MAC_BYTES is a length, not a secret.
SIZE_CONSTANT = re.compile(r"_?[A-Z_]+_BYTES")
SECRET = re.compile(r"(?:^|_)(?:token|secret|mac|signature|password)s?(?:_|$)", re.IGNORECASE)
MAKES_NAMES = "protocol/twinport_protocol/names.py"


def parse_room(package: str) -> dict[str, ast.Module]:
    """The modules of a room, by their path in the project."""
    files = sorted((ROOMS[package] / package).rglob("*.py"))
    return {str(file.relative_to(PROJECT)): ast.parse(file.read_text(), str(file)) for file in files}


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and top-level name of every absolute import, the lazy ones and those in ``TYPE_CHECKING`` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and terminal_name(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                yield node.lineno, first.value.partition(".")[0]


def terminal_name(node: ast.expr) -> str:
    """The last word of a plain or dotted name, of what is called or of what is indexed; else empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        return terminal_name(node.func)
    if isinstance(node, ast.Subscript):
        return terminal_name(node.value)
    return ""


def wrong_imports(package: str, path: str, tree: ast.Module) -> list[str]:
    """The imports of a module that its room does not allow."""
    allowed = {package} | MAY_IMPORT[package]
    banned = NOT_IN_PROTOCOL if package == "twinport_protocol" else set()
    return [
        f"{path}:{line}: {name}"
        for line, name in imports_of(tree)
        if (name not in sys.stdlib_module_names and name not in allowed) or name in banned
    ]


def forged_names(path: str, tree: ast.Module) -> list[str]:
    """Calls that make a ``RemoteName`` past the checks of ``parse_name``."""
    return [
        f"{path}:{node.lineno}"
        for node in ast.walk(tree)
        if path != MAKES_NAMES and isinstance(node, ast.Call) and terminal_name(node.func) == "RemoteName"
    ]


def leaky_comparisons(path: str, tree: ast.Module) -> list[str]:
    """Secrets compared with ``==``, whose time tells how much of a guess was right; ``None`` and lengths may be."""
    return [
        f"{path}:{node.lineno}: {terminal_name(side)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        for side in (node.left, *node.comparators)
        if SECRET.search(terminal_name(side)) and not SIZE_CONSTANT.fullmatch(terminal_name(side))
    ]


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_what_its_arrows_allow(package: str) -> None:
    modules = parse_room(package)
    assert modules, f"the room of {package} is empty"
    assert [wrong for path, tree in modules.items() for wrong in wrong_imports(package, path, tree)] == []


@pytest.mark.parametrize("package", ROOMS)
def test_remote_names_are_made_at_one_door(package: str) -> None:
    assert [call for path, tree in parse_room(package).items() for call in forged_names(path, tree)] == []


@pytest.mark.parametrize("package", ROOMS)
def test_secrets_are_compared_in_constant_time(package: str) -> None:
    assert [place for path, tree in parse_room(package).items() for place in leaky_comparisons(path, tree)] == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("twinport_protocol", "import socket"),
        ("twinport_protocol", "def f():\n    from time import monotonic"),
        ("twinport_protocol", "import click"),
        ("twinport_protocol", "import os.path"),
        ("twinport_service", "import twinport"),
        ("twinport_service", "from twinport.files import put"),
        ("twinport_service", "from twinport_infra import plan"),
        ("twinport", "import twinport_service.cli"),
        ("twinport", "import structlog"),
        ("twinport", "import importlib\nimportlib.import_module('twinport_service')"),
        ("twinport_infra", "import twinport_protocol"),
    ],
)
def test_a_wrong_import_is_seen(package: str, source: str) -> None:
    assert len(wrong_imports(package, "x.py", ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    ["token == given", "self.upload_token != other", "b'' == expected_mac", "secret_key == x", "x == a.secrets[1]"],
)
def test_a_leaky_comparison_is_seen(source: str) -> None:
    assert len(leaky_comparisons("x.py", ast.parse(source))) == 1


@pytest.mark.parametrize("source", ["token is None", "len(token) == MAC_BYTES", "machine == 1", "digest(token, given)"])
def test_a_harmless_comparison_is_let_pass(source: str) -> None:
    assert leaky_comparisons("x.py", ast.parse(source)) == []


def test_a_forged_name_is_seen() -> None:
    assert len(forged_names("x.py", ast.parse("names.RemoteName('../x')"))) == 1
