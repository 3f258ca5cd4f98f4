"""The command ``twinportd audit``: who did what, and what was done to accounts."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import click
from twinport_protocol.names import RESERVED

from .accounts.database import AccountDatabase, AccountsUnusable
from .accounts.store import FILE_NAME
from .audit import AuditEvent, format_entry
from .audit_files import CURRENT_NAME
from .audit_reader import AuditFilter, AuditReader, Row, parse_moment
from .config import ENVIRONMENT_PREFIX
from .log import printable

AUDIT_DIRECTORY = Path(RESERVED) / "audit"
_EXIT_FAILED = 1
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_KIB = 1024


def _moment(ctx: click.Context, param: click.Parameter, word: str | None) -> datetime | None:
    try:
        return None if word is None else parse_moment(word, datetime.now(timezone.utc))
    except ValueError:
        reason = f"{word!r} is no time. Write 90s, 30m, 2h, 7d, or 2026-01-31T12:00 (UTC)."
        raise click.BadParameter(reason, ctx, param) from None


@click.command("audit")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("server_files"),
    envvar=ENVIRONMENT_PREFIX + "ROOT",
    metavar="DIR",
    help="The directory that the server serves. Default: server_files.",
)
@click.option("--user", metavar="USER", help="Only what this user did, and what was done to the account.")
@click.option("--file", metavar="PATTERN", help="Only files like this: 'photos/*.jpg'. A * takes slashes too.")
@click.option("--event", type=click.Choice([event.value for event in AuditEvent]), help="Only events of this kind.")
@click.option(
    "--since",
    callback=_moment,
    metavar="TIME",
    help="From this time on: 2h (ago; s, m, h, d, w) or 2026-01-31T12:00 (UTC).",
)
@click.option("--until", callback=_moment, metavar="TIME", help="Before this time.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as JSON.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what happens, until Ctrl-C.")
def audit(root: Path, as_json: bool, follow: bool, **words: object) -> None:
    """Show who did what: logins, files, refusals, changes of accounts.

    It reads the current audit log and the rotated ones, the oldest first, also while the server runs; and what was
    changed about accounts while it was stopped.

    \b
    Examples:
      twinportd audit --since 2h --user alice
      twinportd audit --event login --json
      twinportd audit --file 'reports/*' -f
    """
    wanted = AuditFilter(**words)  # type: ignore[arg-type] # click has converted them
    reader = AuditReader(root / AUDIT_DIRECTORY)
    show = json.dumps if as_json else format_row
    try:
        # First these: what the server takes over meanwhile is among the others then.
        pending = {} if follow else _pending_changes(root)
        for row in _rows(reader, pending, follow=follow):
            if wanted.passes(row):
                click.echo(show(row))
    except AccountsUnusable as error:
        click.echo(f"twinportd: {error}", err=True)
        sys.exit(_EXIT_FAILED)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # `| head` has seen enough; without this Python would complain once more when it flushes at the end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except FileNotFoundError:
        click.echo(
            f"twinportd: there is no audit log at {root / AUDIT_DIRECTORY / CURRENT_NAME}. "
            "Name the directory that the server serves with --root.",
            err=True,
        )
        sys.exit(_EXIT_FAILED)
    except (OSError, EOFError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "a rotated file is damaged"
        click.echo(
            f"twinportd: cannot read the audit log at {root / AUDIT_DIRECTORY}: {reason}. "
            "Run this as the user that the server runs as, or as root.",
            err=True,
        )
        sys.exit(_EXIT_FAILED)
    if reader.damaged:
        click.echo(f"twinportd: {reader.damaged} damaged lines were left out.", err=True)


def _rows(reader: AuditReader, pending: dict[str, Row], *, follow: bool) -> Iterator[Row]:
    """Those of the log, and behind them the changes that are not in it yet."""
    try:
        for row in reader.rows(follow=follow):
            pending.pop(str(row.get("change")), None)
            yield row
    except FileNotFoundError:
        if not pending:
            raise
    yield from pending.values()


def _pending_changes(root: Path) -> dict[str, Row]:
    """The changes of accounts that no server has taken over yet, as the rows they will be; by their ids."""
    path = root / RESERVED / FILE_NAME
    if not path.exists():
        return {}
    with closing(AccountDatabase(path)) as database:
        return {
            change.id: json.loads(format_entry(change.entry(), change.time)) for change in database.pending_changes()
        }


def format_row(row: Row) -> str:
    """A row for people: time, event, who, from where, what, how it ended. Nothing in it moves the cursor."""
    outcome = _text(row, "outcome")
    parts = [
        f"{_text(row, 'time'):24}",
        f"{_text(row, 'event'):8}",
        f"{_text(row, 'user') or '-':12}",
        f"{_text(row, 'peer') or '-':21}",
        f"{outcome:12}",
    ]
    if row.get("size") is not None:
        parts.append(_size(row["size"]))
    if row.get("seconds") is not None:
        parts.append(f"{_text(row, 'seconds')} s")
    parts += [_text(row, key) for key in ("method", "what", "file") if row.get(key) is not None]
    if row.get("to") is not None:
        parts.append(f"-> {_text(row, 'to')}")
    if row.get("detail") is not None:
        parts.append(_text(row, "detail"))
    if row.get("author") is not None:
        parts.append(f"by {_text(row, 'author')}")
    if row.get("left_out") is not None:
        parts.append(f"({_text(row, 'left_out')} more left out)")
    return "  ".join(parts).rstrip()


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    return "" if value is None else printable(value)


def _size(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return printable(value)
    if value < _KIB:
        return f"{value} B"
    amount, unit = float(value), "B"
    for bigger in _UNITS:
        if amount < _KIB:
            break
        amount, unit = amount / _KIB, bigger
    return f"{amount:.1f} {unit}"
