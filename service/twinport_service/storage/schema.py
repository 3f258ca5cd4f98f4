"""The catalogue's tables, and the statements on them that are used more than once."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE publications (
    id INTEGER PRIMARY KEY, path TEXT, upload BLOB, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER,
    inode INTEGER NOT NULL, root BLOB NOT NULL, digests BLOB, user TEXT, published_at INTEGER NOT NULL, name TEXT
);
CREATE INDEX by_path ON publications (path) WHERE path IS NOT NULL;
CREATE UNIQUE INDEX by_upload ON publications (upload) WHERE upload IS NOT NULL;
CREATE TABLE settled (id INTEGER NOT NULL);
INSERT INTO settled VALUES (0);
CREATE TABLE moves (source TEXT NOT NULL, target TEXT NOT NULL, inode INTEGER NOT NULL);
"""
COLUMNS = "id, path, upload, size, mtime_ns, ctime_ns, inode, root, digests"
INSERT = "INSERT INTO publications VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)"
# A publication's own name outlives its path: a repeated COMMIT is answered with it.
FORGET = "UPDATE publications SET name = coalesce(name, path), path = NULL WHERE path = ? AND id <= ?"
BELOW = "path >= ? AND path < ?"
FORGET_BELOW = f"UPDATE publications SET name = coalesce(name, path), path = NULL WHERE {BELOW} AND id <= ?"  # noqa: S608
NEWER = "SELECT 1 FROM publications AS newer WHERE newer.path = old.path AND newer.id > old.id"
OWNED = f"path IS NOT NULL AND user IS NOT NULL AND NOT EXISTS ({NEWER})"
NO_MOVES: tuple[str, tuple[object, ...]] = ("DELETE FROM moves", ())
"""They are done one at a time, under the publication lock."""
FOLLOW = """
UPDATE publications SET name = coalesce(name, path), path = ?, ctime_ns = ?
WHERE id = (SELECT id FROM publications WHERE path = ? AND id <= ? ORDER BY id DESC LIMIT 1)
"""
FOLLOW_BELOW = """
UPDATE publications SET name = coalesce(name, path), path = ? || substr(path, ?)
WHERE path >= ? AND path < ? AND id <= ?
"""
