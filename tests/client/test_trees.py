"""``du``, ``tree`` and the orders of ``ls``: adding up and drawing, purely and against a server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport.cli.trees import Node, draw, grow, walk_totals
from twinport.client import Client
from twinport.entries import RemoteEntry

from tests.client.conftest import RunCommand
from tests.client.servers import ServerProcess

MakeFile = Callable[..., Path]


def entry(name: str, size: int = 1) -> RemoteEntry:
    """A file, or a directory where the name ends in a slash."""
    kind = "d" if name.endswith("/") else "f"
    return RemoteEntry(name.rstrip("/"), kind, 0 if kind == "d" else size, 0)


LISTING = [entry("a", 5), entry("b/c/d", 10), entry("b/e", 20), entry("f/"), entry("g/h/")]


def test_a_tree_is_drawn_as_everybody_draws_them() -> None:
    assert list(draw(grow("", LISTING, None))) == [
        "├── a",
        "├── b/",
        "│   ├── c/",
        "│   │   └── d",
        "│   └── e",
        "├── f/",
        "└── g/",
        "    └── h/",
    ]
    assert list(draw(grow("", LISTING, 1))) == ["├── a", "├── b/", "├── f/", "└── g/"]


def totals(top: Node) -> dict[str, tuple[int, int]]:
    """What ``du`` says."""
    return {name: (node.size_bytes, node.files) for name, node in walk_totals(top)}


def test_directories_are_added_up_down_to_a_depth() -> None:
    assert totals(grow("", LISTING, 1)) == {"b/": (30, 2), "f/": (0, 0), "g/": (0, 0), "/": (35, 3)}
    assert totals(grow("", LISTING, 2))["b/c/"] == (10, 1)
    assert totals(grow("", LISTING, 0)) == {"/": (35, 3)}


def test_names_are_those_from_the_prefix_on() -> None:
    top = grow("b/", [entry("b/c/d", 10), entry("b/e", 20)], None)
    assert totals(top) == {"b/c/": (10, 1), "b/": (30, 2)}
    assert list(draw(top)) == ["├── c/", "│   └── d", "└── e"]
    assert totals(grow("b/e", [entry("b/e", 20)], None)) == {"b/e": (20, 1)}


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map("/".join)


@given(st.dictionaries(NAMES, st.integers(0, 1000)), st.integers(0, 5))
def test_nothing_is_counted_twice_or_not_at_all(sizes: dict[str, int], depth: int) -> None:
    files = {name: size for name, size in sizes.items() if not any(other.startswith(f"{name}/") for other in sizes)}
    top = grow("", [entry(name, size) for name, size in sorted(files.items())], depth)
    for name, (size, count) in totals(top).items():
        below = [size for other, size in files.items() if name == "/" or other.startswith(name)]
        assert (size, count) == (sum(below), len(below))


@pytest.fixture
def filled(client: Client, make_file: MakeFile, prefix: str) -> str:
    """A directory on the server: three files, the middle one by name the largest, the first the newest."""
    for place, size, mtime in (("one", 10, 3000), ("two", 3000, 1000), ("two/three", 200, 2000)):
        path = make_file(os.path.basename(place) + ".bin", size)
        os.utime(path, (mtime, mtime))
        client.put(path, f"{prefix}/{place}")
    return prefix


def test_du_and_tree_of_a_server(run_command: RunCommand, shared_server: ServerProcess, filled: str) -> None:
    code, shown, said = run_command("--host", shared_server.host, "du", filled)
    assert (code, said) == (0, "")
    assert [line.split() for line in shown.splitlines()] == [
        ["10", "B", "1", f"{filled}/one/"],
        ["3.1", "KiB", "2", f"{filled}/two/"],
        ["3.1", "KiB", "3", f"{filled}/"],
    ]
    code, shown, _ = run_command("--host", shared_server.host, "du", filled, "--json", "--depth", "0")
    assert (code, json.loads(shown)) == (0, {"name": f"{filled}/", "size": 3210, "files": 3})
    code, shown, said = run_command("--host", shared_server.host, "tree", filled)
    assert (code, said) == (0, "")
    assert shown == (
        f"{filled}/\n├── one/\n│   └── one.bin\n└── two/\n    ├── three/\n    │   └── three.bin\n    └── two.bin\n\n"
        "3 files, 3.1 KiB\n"
    )
    code, shown, _ = run_command("--host", shared_server.host, "tree", filled, "--json")
    assert (code, json.loads(shown)["files"]) == (0, 3)


@pytest.mark.parametrize("command", ["du", "tree"])
def test_what_is_not_there_is_not_empty(run_command: RunCommand, shared_server: ServerProcess, command: str) -> None:
    code, shown, said = run_command("--host", shared_server.host, command, "no/such/place")
    assert (code, shown) == (3, "")
    assert "no/such/place" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["one", "three", "two"]),
        (["--reverse"], ["two", "three", "one"]),
        (["--sort", "size"], ["two", "three", "one"]),
        (["--sort", "size", "--reverse"], ["one", "three", "two"]),
        (["--sort", "time"], ["one", "three", "two"]),
        (["--sort", "time", "--reverse"], ["two", "three", "one"]),
    ],
)
def test_listings_in_another_order(
    run_command: RunCommand, shared_server: ServerProcess, filled: str, options: list[str], expected: list[str]
) -> None:
    code, shown, _ = run_command("--host", shared_server.host, "ls", "-r", filled, *options)
    assert code == 0
    assert [os.path.basename(line).removesuffix(".bin") for line in shown.splitlines()] == expected
