"""What the ``twinportd user`` commands share: the root, the database in it, secrets from a terminal or stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from twinport_protocol.auth import MAX_USER_CHARACTERS, parse_user
from twinport_protocol.errors import Refusal
from twinport_protocol.names import RESERVED

from twinport_service.config import ENVIRONMENT_PREFIX

from .changes import this_person
from .database import AccountDatabase, AccountError, AccountsUnusable
from .grants import Grant, GrantError, parse_grant
from .keys import KeyTextError, parse_keys
from .passwords import PasswordRejected, hash_password
from .records import Account, Key
from .store import FILE_NAME
from .words import WordError

EXIT_FAILED = 1
EXIT_USAGE = 2
_MAX_KEY_FILE_BYTES = 256 * 1024
_MAX_PASSWORD_TEXT = 64 * 1024
_IDENTITY_NAME = "identity.json"  # made by the first server, never by these commands
_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def root_option(function: _F) -> _F:
    """``--root``, as ``twinportd serve`` has it."""
    return click.option(
        "--root",
        type=click.Path(path_type=Path),
        default=Path("server_files"),
        envvar=ENVIRONMENT_PREFIX + "ROOT",
        metavar="DIR",
        help="The directory that the server serves. Default: server_files.",
    )(function)


def fail(text: str, code: int = EXIT_FAILED) -> NoReturn:
    """Say why on stderr and end."""
    click.echo(f"twinportd: {text}", err=True)
    sys.exit(code)


def read_word(parse: Callable[[str], _T]) -> Callable[[click.Context, click.Parameter, str | None], _T | None]:
    """A click callback that reads an option with ``parse``; a missing one is None."""

    def callback(ctx: click.Context, param: click.Parameter, word: str | None) -> _T | None:
        try:
            return None if word is None else parse(word)
        except (WordError, GrantError) as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def read_name(ctx: click.Context, param: click.Parameter, word: str) -> str:
    """A click callback for a user's name."""
    try:
        return parse_user(word)
    except Refusal:
        form = f"at most {MAX_USER_CHARACTERS} letters, digits and . _ @ -, the first a letter, digit or _"
        raise click.BadParameter(f"{word!r} is no user name; one is {form}.", ctx, param) from None


def read_grants(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> list[Grant]:
    """A click callback for ``PATTERN=ACTS``."""
    found = []
    for word in words:
        pattern, _, acts = word.rpartition("=")
        try:
            found.append(parse_grant(pattern, acts.split(",")))
        except GrantError as error:
            raise click.BadParameter(f"{error} Write it as in 'shared/**=list,read'.", ctx, param) from None
    return found


@contextmanager
def open_accounts(root: Path, *, make: bool = False) -> Iterator[AccountDatabase]:
    """The database of a root; with ``make`` it is made, as the server would, when it is missing. Ends the command, with
    the reason, when it cannot be used or a change makes no sense."""
    own = root / RESERVED
    path = own / FILE_NAME
    try:
        if make:
            root.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                own.mkdir(mode=0o700)
                if os.geteuid() == 0:  # made by root for a server that runs as the owner of the files
                    owner = root.stat()
                    os.chown(own, owner.st_uid, owner.st_gid)
        elif not path.exists():
            fail(f"there are no accounts in {root}. Add the first one with: twinportd user add NAME --root {root}")
        with closing(AccountDatabase(path, author=this_person())) as database:
            yield database
    except (AccountError, AccountsUnusable) as error:
        fail(f"{error}.".replace("..", "."))
    except OSError as error:
        fail(f"cannot use {root}: {error.strerror}. Choose another --root or mend its rights.")


def warn_of_unused_root(root: Path) -> None:
    """Say on stderr where an account went if no server has been there: perhaps another root was meant."""
    if not (root / RESERVED / _IDENTITY_NAME).exists():
        click.echo(
            f"twinportd: no server has used {root.absolute()} yet. The account counts where that is the --root.",
            err=True,
        )


def require_account(database: AccountDatabase, name: str) -> Account:
    """An account that must be there. ``AccountError``."""
    account = database.load().accounts.get(name)
    if account is None:
        raise AccountError(f"there is no account {name!r}. `twinportd user list` shows all")
    return account


def read_password(name: str, *, from_stdin: bool) -> str:
    """The hash of a new password: one line of stdin, or asked for twice on a terminal. Ends the command otherwise."""
    if from_stdin:
        try:
            text = sys.stdin.readline() if sys.stdin.isatty() else sys.stdin.read(_MAX_PASSWORD_TEXT)
        except UnicodeDecodeError:
            fail("the password on stdin is not valid UTF-8", EXIT_USAGE)
        password, _, rest = text.partition("\n")
        password = password.rstrip("\r")
        if rest.strip():
            fail("stdin holds more than one line; give the password alone, as one line.", EXIT_USAGE)
    elif sys.stdin.isatty():
        password = click.prompt(f"New password for {name}", hide_input=True, confirmation_prompt=True, err=True)
    else:
        fail(
            f"no password for {name}: stdin is not a terminal. "
            "Give it as one line of stdin with --password-stdin, or a key with --key FILE.pub.",
            EXIT_USAGE,
        )
    try:
        return hash_password(password)
    except PasswordRejected as error:
        fail(f"{error}; choose another.", EXIT_USAGE)


def read_keys(file: str) -> list[Key]:
    """The keys of a ``.pub`` file, or of stdin for ``-``. Ends the command when there is none that can be used."""
    try:
        if file == "-":
            text = sys.stdin.read(_MAX_KEY_FILE_BYTES)
        else:
            with open(file, encoding="utf-8") as stream:
                text = stream.read(_MAX_KEY_FILE_BYTES)
        return parse_keys(text)
    except KeyTextError as error:
        fail(f"{'stdin' if file == '-' else file}: {error}.", EXIT_USAGE)
    except UnicodeDecodeError:
        fail(f"{file}: not a text; give the .pub file, as ssh-keygen writes it.", EXIT_USAGE)
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}.", EXIT_USAGE)
