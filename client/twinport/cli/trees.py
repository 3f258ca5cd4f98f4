"""``du`` and ``tree``: what lies below a directory, added up or drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from .context import Settings, with_settings

if TYPE_CHECKING:
    from twinport.entries import RemoteEntry


@dataclass
class Node:
    """A directory or file, with all below it: ``files`` and their ``size_bytes``; the ``children`` only down to the
    depth that was asked for."""

    name: str
    is_directory: bool = True
    size_bytes: int = 0
    files: int = 0
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """How it is shown: directories end in a slash."""
        return f"{self.name}/" if self.is_directory and self.name else self.name


def grow(prefix: str, entries: Iterable[RemoteEntry], depth: int | None) -> Node:
    """The tree of a recursive listing of ``prefix``; what lies deeper than ``depth`` only counts."""
    top = Node(prefix.strip("/"))
    skip = len(top.name) + 1 if top.name else 0
    for entry in entries:
        if entry.name == top.name:  # the prefix itself is a file
            return Node(top.name, entry.is_directory, entry.size, int(not entry.is_directory))
        parts = entry.name[skip:].split("/")
        node = top
        for level, part in enumerate(parts, 1):
            _count(node, entry)
            if depth is not None and level > depth:
                break
            is_directory = level < len(parts) or entry.is_directory
            node = node.children.setdefault(part, Node(part, is_directory))
        else:
            _count(node, entry)
    return top


def _count(node: Node, entry: RemoteEntry) -> None:
    if not entry.is_directory:
        node.size_bytes += entry.size
        node.files += 1


def walk_totals(node: Node, above: str = "") -> Iterator[tuple[str, Node]]:
    """Every directory and what it is called from the top, children first, as ``du`` has it."""
    name = f"{above}{node.key}"
    for child in node.children.values():
        if child.is_directory:
            yield from walk_totals(child, name)
    yield name or "/", node


def draw(node: Node, before: str = "") -> Iterator[str]:
    """The lines below a node, as ``tree`` draws them."""
    from twinport.walk import show

    last = len(node.children)
    for number, child in enumerate(node.children.values(), 1):
        corner, rest = ("└── ", "    ") if number == last else ("├── ", "│   ")
        yield f"{before}{corner}{show(child.key)}"
        yield from draw(child, before + rest)


@click.command(short_help="Add up what lies in directories on the server.")
@click.argument("prefix", default="", metavar="[PREFIX]")
@click.option("--depth", type=click.IntRange(0), default=1, metavar="N", help="Levels to show; 1 if not given.")
@with_settings
def du(settings: Settings, prefix: str, depth: int) -> None:
    """Add up what lies in a directory on the server and in those below it: bytes of the files, how many they are.

    \b
    Examples:
      twinport du
      twinport du alice/backup --depth 2
    """
    from twinport.walk import show

    from .display import format_bytes

    with settings.connect() as client:
        top = grow(prefix, client.list(prefix, recursive=True), depth)
    for name, node in walk_totals(top):
        if settings.as_json:
            facts = {"name": "" if name == "/" else name, "size": node.size_bytes, "files": node.files}
            click.echo(json.dumps(facts, ensure_ascii=False))
        else:
            click.echo(f"{format_bytes(node.size_bytes):>11}  {node.files:>8}  {show(name)}")


@click.command(short_help="Draw the directories and files on the server.")
@click.argument("prefix", default="", metavar="[PREFIX]")
@click.option("--depth", type=click.IntRange(1), metavar="N", help="Levels to draw; all if not given.")
@with_settings
def tree(settings: Settings, prefix: str, depth: int | None) -> None:
    """Draw the directories and files below PREFIX on the server.

    \b
    Examples:
      twinport tree
      twinport tree alice/backup --depth 2
    """
    from twinport.walk import show

    from .display import format_bytes

    with settings.connect() as client:
        top = grow(prefix, client.list(prefix, recursive=True), depth)
    if settings.as_json:
        click.echo(json.dumps(_facts(top), ensure_ascii=False))
        return
    click.echo(show(top.key or "/"))
    for line in draw(top):
        click.echo(line)
    noun = "file" if top.files == 1 else "files"
    click.echo(f"\n{top.files} {noun}, {format_bytes(top.size_bytes)}")


def _facts(node: Node) -> dict[str, object]:
    facts: dict[str, object] = {"name": node.name, "size": node.size_bytes}
    if node.is_directory:
        facts |= {"files": node.files, "children": [_facts(child) for child in node.children.values()]}
    return facts
