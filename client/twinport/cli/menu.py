"""``menu``: uploads, downloads and lists by number, for people at a terminal and for lines piped in."""

from __future__ import annotations

import io
import itertools
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

import click

from twinport.errors import NotFoundError, TwinportError, UsageError

from .context import Settings, with_settings
from .warm_up import DOWNLOAD, UPLOAD

if TYPE_CHECKING:
    from twinport.client import Client

DOWNLOAD_DIRECTORY = "client_downloads"
MOST_LISTED = 1000
_CHOICES = """
=== TWINPORT ===
1. Upload a file
2. Download a file
3. List files
4. Quit"""


class _EndOfInput(Exception):  # noqa: N818  it ends the menu; it is no error
    """Nobody answers any more."""


class CountingObserver:
    """One line that counts the bytes of one file, ``Uploading: 42% [420/1000 bytes]``: redrawn on a terminal, elsewhere
    written once, by :meth:`finish`."""

    def __init__(self, verb: str, size_bytes: int, stream: TextIO) -> None:
        self._verb = verb
        self._size_bytes = size_bytes
        self._stream = stream
        self._draws = stream.isatty()
        self._is_open = False

    def file_done(self, name: str, size_bytes: int) -> None:
        """The caller says so."""

    def file_failed(self, name: str, error: TwinportError) -> None:
        """The caller says so."""

    def note(self, text: str) -> None:
        """On a line of its own."""
        from twinport.walk import show

        self.break_off()
        click.echo(f"({show(text)})", file=self._stream)

    def progress(self, done_bytes: int, known_bytes: int) -> None:
        """Redraw it. All of it is only said by :meth:`finish`: what is sent need not be stored yet."""
        if self._draws and done_bytes < self._size_bytes:
            self._write(done_bytes)

    def finish(self) -> None:
        """It is complete."""
        self._write(self._size_bytes)
        self.break_off()

    def break_off(self) -> None:
        """End the line where it stands."""
        if self._is_open:
            click.echo(file=self._stream)
            self._is_open = False

    def _write(self, done_bytes: int) -> None:
        percent = 100 * done_bytes // self._size_bytes if self._size_bytes else 100
        start = "\r" if self._draws else ""
        click.echo(
            f"{start}{self._verb}: {percent}% [{done_bytes}/{self._size_bytes} bytes]", nl=False, file=self._stream
        )
        self._is_open = True


class Menu:
    """The conversation: questions and answers over two streams. Names are those below the user's own folder, where
    there is one."""

    def __init__(self, client: Client, questions: TextIO, answers: TextIO) -> None:
        self._client = client
        self._out = questions
        self._in = answers
        self._home = client.identity.home
        self._mark = "✓ " if _can_say("✓", questions) else ""

    def run(self) -> None:
        """Until 4 or the end of the answers. What fails is said, and the menu is there again."""
        acts: dict[str, Callable[[], None]] = {"1": self._upload, "2": self._download, "3": self._list}
        while True:
            self._say(_CHOICES)
            try:
                choice = self._ask("Enter your choice (1-4): ")
                if choice == "4":
                    self._say("Goodbye.")
                    return
                act = acts.get(choice)
                if act is None:
                    self._say("That is no choice; type 1, 2, 3 or 4.")
                    continue
                act()
            except _EndOfInput:
                self._say("")
                return
            except TwinportError as error:
                self._say(f"Error: {error.message}")
            except BrokenPipeError:  # nobody reads any more
                raise
            except OSError as error:
                self._say(f"Error: {error.filename or 'this machine'}: {error.strerror or error}")

    def _upload(self) -> None:
        path = _unquoted(self._ask("Enter the path of file to upload: "))
        if not path:
            raise UsageError("no path was given")
        if "\0" in path:
            raise UsageError("no path has a zero byte in it")
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            raise UsageError(f"{path} is a directory; `twinport put -r {shlex.quote(path)}` sends all in it")
        size_bytes = os.stat(path).st_size
        self._begin("UPLOADING", os.path.basename(path), size_bytes)
        observer = CountingObserver("Uploading", size_bytes, self._out)
        try:
            report = self._client.put(path, self._home, progress=observer)
            observer.finish()
        finally:
            observer.break_off()
        self._say(f"{self._mark}Upload complete!" + (" (It was there already.)" if report.files_kept else ""))

    def _download(self) -> None:
        name = self._ask("Enter the filename to download: ")
        if not name:
            raise UsageError("no filename was given")
        remote = f"{self._home}/{name}" if self._home else name
        entry = self._client.stat(remote)
        if entry.is_directory:
            raise UsageError(f"{name} is a directory; `twinport get -r {shlex.quote(remote)}` fetches all in it")
        self._begin("DOWNLOADING", name, entry.size)
        observer = CountingObserver("Downloading", entry.size, self._out)
        try:
            self._client.get(remote, DOWNLOAD_DIRECTORY, progress=observer)
            observer.finish()
        finally:
            observer.break_off()
        target = os.path.join(DOWNLOAD_DIRECTORY, name.rstrip("/").rpartition("/")[2])
        self._say(f"{self._mark}Download complete! Saved to: {target}")

    def _list(self) -> None:
        entries = self._client.list(self._home, recursive=True)
        try:
            names = [entry.key for entry in itertools.islice(entries, MOST_LISTED + 1)]
        except NotFoundError:  # a folder is made with the first file in it
            names = []
        self._say("=== AVAILABLE FILES ===")
        for number, name in enumerate(names[:MOST_LISTED], 1):
            self._say(f"{number}. {name.removeprefix(f'{self._home}/') if self._home else name}")
        if not names:
            self._say("There are none yet.")
        if len(names) > MOST_LISTED:
            self._say("and more; `twinport ls -r` lists all.")

    def _begin(self, what: str, name: str, size_bytes: int) -> None:
        self._say(f"=== {what} FILE ===")
        self._say(f"File: {name}")
        self._say(f"Size: {size_bytes} bytes")

    def _ask(self, question: str) -> str:
        self._out.write(question)
        self._out.flush()
        line = self._in.readline()
        if not line:
            raise _EndOfInput
        answer = line.strip()
        if not self._in.isatty():  # nobody has typed it on the screen
            self._say(answer)
        return answer

    def _say(self, text: str) -> None:
        from twinport.walk import show

        click.echo("\n".join(show(line) if line else "" for line in text.split("\n")), file=self._out)


def _unquoted(text: str) -> str:
    """A path as file managers drop it onto a terminal: in quotes, or with its blanks escaped."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text if os.path.exists(text) else text.replace("\\ ", " ")


def _can_say(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@click.command(short_help="Upload, download and list by number.")
@with_settings
def menu(settings: Settings) -> None:
    """Upload, download and list files by number: a menu that asks for everything.

    Downloads go into client_downloads in the current directory. An error does not end it; 4 does, or the end of the
    input, so that lines can be piped in.

    \b
    Examples:
      twinport menu
      printf '1\\nphoto.jpg\\n4\\n' | twinport --host files.example.org menu
    """
    if settings.as_json:
        raise UsageError("a menu is for people; put, get and ls know --json")
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # names are bytes in the end: no encoding ends the menu
            stream.reconfigure(errors=errors)
    with settings.connect(needed=UPLOAD + DOWNLOAD) as client:
        Menu(client, sys.stdout, sys.stdin or io.StringIO()).run()
