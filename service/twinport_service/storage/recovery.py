"""What a crash has left between the files and the catalogue: the files decide, at the next start."""

from __future__ import annotations

import os

from .catalogue import Catalogue
from .disk_door import DiskDoor
from .rows import Move, signed
from .tree import Identity, Tree


def resolve_names(door: DiskDoor, tree: Tree, catalogue: Catalogue, root_fd: int) -> None:
    """Decide what the last moves and the last batch before a crash have become. ``OSError``, ``sqlite3.Error``.

    Moves first: rows of the batch may have to follow them."""
    _resolve_moves(door, tree, catalogue, root_fd)
    _resolve_pending(door, tree, catalogue, root_fd)


def _resolve_moves(door: DiskDoor, tree: Tree, catalogue: Catalogue, root_fd: int) -> None:
    moves = catalogue.unfinished_moves()
    done = [(move, facts) for move in moves if (facts := _moved(tree, move)) is not None]
    if done:
        door.sync_file_system(root_fd)
    for move, facts in done:
        catalogue.follow(move.source, move.target, facts.st_ctime_ns)
    if moves:
        catalogue.cancel_move()


def _moved(tree: Tree, move: Move) -> os.stat_result | None:
    """What is at the target of a move, if that is what was to be moved, and is there alone."""
    source, target = _look(tree, move.source), _look(tree, move.target)
    if source is not None and signed(source.st_ino) == move.inode:
        return None
    return target if target is not None and signed(target.st_ino) == move.inode else None


def _look(tree: Tree, name: str) -> os.stat_result | None:
    try:
        return tree.facts(name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _resolve_pending(door: DiskDoor, tree: Tree, catalogue: Catalogue, root_fd: int) -> None:
    """A row is true if its file is there."""
    kept: list[tuple[int, int]] = []
    dropped: list[int] = []
    for row in catalogue.pending():
        try:
            identity = Identity.of(tree.facts(row.path))
        except OSError:
            dropped.append(row.id)
            continue
        if row.matches(identity):
            kept.append((row.id, identity.ctime_ns))
        else:
            dropped.append(row.id)
    if kept:
        # Renamed, but perhaps not durably: it must be, before anybody is told that it was published.
        door.sync_file_system(root_fd)
    if kept or dropped:
        catalogue.resolve(kept, dropped)
