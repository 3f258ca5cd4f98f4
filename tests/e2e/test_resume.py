"""What a resumed upload must not inherit from the run before."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.counting_proxy import CountingProxy
from tests.e2e.processes import Daemon, Run, are_same, make_file
from tests.e2e.scale import MIB

SIZE_BYTES = 24 * MIB
# So that there is time to interrupt an upload, on a busy machine too.
SLOWLY = ["--max-bytes-per-second", str(8 * MIB)]


def test_an_interrupted_replacement_does_not_replace_when_that_is_refused_later(shm_path: Path) -> None:
    for place, seed in (("old", 1), ("new", 2)):
        (shm_path / place).mkdir()
        make_file(shm_path / place / "file", SIZE_BYTES, seed)
    stored = shm_path / "root" / "file"
    new = str(shm_path / "new" / "file")
    daemon = Daemon(shm_path / "root", shm_path / "server.log", "--no-classic", *SLOWLY)
    with daemon, CountingProxy(daemon.control_port, daemon.data_port) as proxy:
        Run(proxy.host, ["-q", "put", str(shm_path / "old" / "file")], shm_path).succeed()
        tally = proxy.begin()
        interrupted = Run(proxy.host, ["-q", "put", new], shm_path)
        assert proxy.wait_until(lambda: len(tally.sealed) > 0), interrupted.output
        interrupted.kill()
        proxy.wait_until_quiet(tally)

        careful = Run(proxy.host, ["-q", "put", "--no-replace", new], shm_path)
        assert careful.wait() == 1
        assert "the name is taken" in careful.output
        assert are_same(stored, shm_path / "old" / "file")

        tally = proxy.begin()
        Run(proxy.host, ["-q", "put", new], shm_path).succeed()
        assert tally.put_bytes < SIZE_BYTES  # the interrupted run is gone on with
        assert are_same(stored, shm_path / "new" / "file")
    daemon.assert_no_traceback()
