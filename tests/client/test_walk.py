"""Finding local files: trees of any depth, and links that lead in circles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from twinport import errors
from twinport.client import Client
from twinport.report import Failure
from twinport.sources import SourceFile
from twinport.walk import EmptyDirectory, Note, find_tree

DEPTH = 1500
"""More than Python nests calls."""


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A tree of so many directories in each other, a file beside the first and one in the last."""
    top = tmp_path / "deep"
    top.mkdir()
    (top / "z").write_bytes(b"near")
    path = str(top)
    for _ in range(DEPTH):
        path += "/d"
        os.mkdir(path)
    Path(path, "far").write_bytes(b"far")
    yield top
    os.unlink(f"{path}/far")
    while path != str(top):  # neither does shutil.rmtree get that deep
        os.rmdir(path)
        path = path[:-2]


@pytest.mark.parametrize("follow", [False, True])
def test_a_tree_deeper_than_calls_may_nest_is_walked_to_its_end(deep: Path, follow: bool) -> None:
    far, near = find_tree(str(deep), "t", follow=follow)
    assert isinstance(far, Failure)
    assert "too long" in far.error.message or "InvalidName" in far.error.message
    assert isinstance(near, SourceFile)
    assert near.name == "t/z"


def test_what_lies_too_deep_fails_alone(client: Client, prefix: str, deep: Path) -> None:
    with pytest.raises(errors.PartialFailureError) as caught:
        client.put(deep, prefix, recursive=True)
    assert caught.value.report.files_done == 1
    assert len(caught.value.report.failures) == 1
    assert [entry.name for entry in client.list(prefix, recursive=True)] == [f"{prefix}/deep/z"]


def test_the_order_is_that_of_listings_and_empty_directories_are_found(tmp_path: Path) -> None:
    for name in ("a/x", "a-b", "a.txt", "b/c/d/e", "c"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "b/empty").mkdir()
    found = list(find_tree(str(tmp_path), "t"))
    assert [item.name for item in found if isinstance(item, (SourceFile, EmptyDirectory))] == [
        "t/a-b",
        "t/a.txt",
        "t/a/x",
        "t/b/c/d/e",
        "t/b/empty",
        "t/c",
    ]


def test_links_in_circles_end_and_a_directory_may_be_reached_twice(tmp_path: Path) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "one/two/file").write_bytes(b"x")
    (tmp_path / "one/two/up").symlink_to("..")
    (tmp_path / "one/twin").symlink_to("two")
    (tmp_path / "zwei").symlink_to("one/two")
    found = list(find_tree(str(tmp_path), "", follow=True))
    assert [item.name for item in found if isinstance(item, SourceFile)] == [
        "one/twin/file",
        "one/two/file",
        "zwei/file",
        "zwei/up/two/file",
    ]
    assert len([item for item in found if isinstance(item, Note)]) == 4
