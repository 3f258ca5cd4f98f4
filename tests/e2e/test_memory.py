"""The memory of both ends does not grow with the file: a large one up and down, every byte right."""

from __future__ import annotations

import time

import pytest

from tests.e2e.processes import Daemon, Run, make_file, sha256_of
from tests.e2e.scale import MEMORY_BYTES, MIB, SEED, work_directory

MOST_RSS_MIB = 100
SAMPLE_SECONDS = 0.01


def peak_of(run: Run) -> float:
    """Wait for a successful end; the client's peak RSS in MiB, read while it runs: afterwards nobody knows."""
    peak = 0.0
    while run.process.poll() is None:
        peak = max(peak, run.peak_rss_mib)
        time.sleep(SAMPLE_SECONDS)
    run.succeed()
    return peak


@pytest.mark.timeout(3600)
def test_a_large_file_goes_and_comes_in_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    with work_directory() as directory:
        source = directory / "source"
        make_file(source, MEMORY_BYTES, SEED)
        expected = sha256_of(source)
        with Daemon(directory / "root", directory / "server.log") as daemon:
            for direction, arguments in (
                ("up", ["put", str(source)]),
                ("down", ["get", source.name, "-o", str(directory / "copy")]),
            ):
                started = time.monotonic()
                peak = peak_of(Run(daemon.host, ["-q", *arguments], directory))
                seconds = time.monotonic() - started
                lines.append(
                    f"{MEMORY_BYTES / MIB:.0f} MiB {direction} in {seconds:.1f} s: "
                    f"client {peak:.1f} MiB, server {daemon.peak_rss_mib:.1f} MiB"
                )
                assert 10 < peak < MOST_RSS_MIB, lines
                assert 10 < daemon.peak_rss_mib < MOST_RSS_MIB, lines
                if direction == "up":
                    source.unlink()  # room for the copy
        assert sha256_of(directory / "root" / "source") == expected
        assert sha256_of(directory / "copy") == expected
        daemon.assert_no_traceback()
    with capsys.disabled():
        print("\n" + "\n".join(lines), end="")  # noqa: T201  # the measurement is the result
