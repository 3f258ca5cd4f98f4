"""Running a case: everybody starts, rounds take turns, every result is checked after its time was taken."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cases import MIB, Case, Place
from benchmarks.inputs import Input, WrongResultError, check_file, check_tree, make_input
from benchmarks.line import Line, LineUnavailableError, open_line
from benchmarks.measure import ClientError, Figures, Job, TooSlowError, run_job, warm_memory
from benchmarks.peers import OURS, PEERS, Peer, PeerError, Site

_MOST_WARM_BYTES = 2 * 1024 * MIB
Say = Callable[[str], None]


@dataclass
class CaseResult:
    """What came of a case. ``runs`` are by contender, direction and round; ``notes`` say who is missing and why."""

    case: Case
    runs: dict[tuple[str, str], dict[int, Figures]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def note(self, contender: str, text: str) -> None:
        """Say why somebody, or a part of what it should have run, is missing."""
        line = f"{contender}: {' '.join(text.split())}"
        if line not in self.notes:
            self.notes.append(line)


def run_case(
    case: Case, contenders: Sequence[str], places: dict[Place, Path], source: Path, say: Say, judged: bool = True
) -> CaseResult:
    """All rounds of a case. Nobody's failure ends it; see ``notes``, and ``failures`` for wrong results."""
    result = CaseResult(case)
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=places[case.place], prefix="twinport-bench-")))
        given = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=source, prefix="twinport-bench-source-")))
        line = None
        if case.line is not None:
            try:
                line = stack.enter_context(open_line(case.line))
            except LineUnavailableError as error:
                result.note("all", str(error))
                return result
        wanted = make_input(given, case.files, case.file_bytes)
        peers = [peer for name in contenders if (peer := _start(stack, case, name, where, line, result))]
        for number in range(case.rounds):
            for peer in list(peers)[:: -1 if number % 2 else 1]:
                if number and peer.name in case.slow:
                    continue
                if judged:
                    warm_memory(min(case.total_bytes + 64 * MIB, _MOST_WARM_BYTES))
                if not _take_turn(peer, case, wanted, number, result, say):
                    peers.remove(peer)
    return result


def _start(stack: ExitStack, case: Case, name: str, where: Path, line: Line | None, result: CaseResult) -> Peer | None:
    directory = where / name
    directory.mkdir()
    flush = case.place is Place.DISK
    site = Site(directory, flush=flush)
    if line is not None:
        site = Site(directory, line.address, line.server_prefix, line.client_prefix, flush)
    with ExitStack() as starting:
        try:
            PEERS[name].check()
            peer = PEERS[name](site)
            # Sessions that a server forked may outlive it; they end with the group.
            starting.callback(peer.group.remove)
            peer.prepare()
            peer.start(starting)
        except (PeerError, OSError) as error:
            result.note(name, str(error))
            if PEERS[name] in OURS:
                result.failures.append(f"{case.name}: {name}: {error}")
            return None
        stack.push(starting.pop_all())
    return peer


def _take_turn(peer: Peer, case: Case, wanted: Input, number: int, result: CaseResult, say: Say) -> bool:
    """Up and down once; whether the peer may take part in the next round."""
    back = peer.site.directory / "back"
    fine = True
    for direction in case.directions:
        try:
            figures = _measure(peer, case, direction, wanted, back)
        except TooSlowError:
            result.note(peer.name, f"{direction} took longer than {case.most_seconds:g} s")
            fine = False
            if direction == "up":
                _put_by_hand(peer, case, wanted)  # so that the way down can be measured
        except (ClientError, WrongResultError, OSError) as error:
            result.note(peer.name, f"{direction} failed: {error}")
            if isinstance(peer, OURS):
                result.failures.append(f"{case.name}: {peer.name}: {direction}: {error}")
            fine = False
            break
        else:
            result.runs.setdefault((peer.name, direction), {})[number] = figures
            say(f"{case.name} {number + 1}/{case.rounds} {peer.name} {direction}: {figures.wall_seconds:.3f} s")
    _discard(back)
    for path in peer.stored.iterdir():
        _discard(path)
    return fine


def _measure(peer: Peer, case: Case, direction: str, wanted: Input, back: Path) -> Figures:
    """One run, checked. Raises ``ClientError``, ``WrongResultError``."""
    if case.clients > 1 and direction == "down":
        back.mkdir()
    job = _job_of(peer, case, direction, wanted, back)
    figures = run_job(job, peer.group, peer.site.client_environment(), case.most_seconds)
    _check(peer, case, direction, wanted, back)
    return figures


def _put_by_hand(peer: Peer, case: Case, wanted: Input) -> None:
    for source in wanted.sources if case.clients > 1 else [wanted.path]:
        target = peer.stored_path(source.name)
        _discard(target)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def _job_of(peer: Peer, case: Case, direction: str, wanted: Input, back: Path) -> Job:
    names = [path.name for path in wanted.sources]
    if case.clients > 1:
        return peer.uploads(wanted.sources) if direction == "up" else peer.downloads(names, back)
    return peer.upload(wanted.path) if direction == "up" else peer.download(wanted.path.name, back, case.tree)


def _check(peer: Peer, case: Case, direction: str, wanted: Input, back: Path) -> None:
    if case.clients > 1:
        for name, expected in wanted.digests.items():
            check_file(name, expected, (back if direction == "down" else peer.stored) / name)
        return
    path = back if direction == "down" else peer.stored_path(wanted.path.name)
    if case.tree:
        check_tree(wanted.digests, path)
    else:
        check_file(wanted.path.name, wanted.digests[wanted.path.name], path)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
