"""``twinport completion``: real shells complete with what it prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.conftest import RunCommand

BIN = str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("twinport wh", ["whoami"]), ("twinport do", ["doctor"]), ("twinport put --rec", ["--recursive"])],
)
def test_bash_completes(run_command: RunCommand, tmp_path: Path, line: str, expected: list[str]) -> None:
    code, script, said = run_command("completion", "bash")
    assert (code, said) == (0, "")
    (tmp_path / "completion.bash").write_text(script)
    words = line.split()
    program = (
        f"source completion.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        '_twinport_completion twinport; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program],
        cwd=tmp_path,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_others_get_a_script_of_their_own(run_command: RunCommand, tmp_path: Path, shell: str) -> None:
    code, script, _ = run_command("completion", shell)
    assert code == 0
    assert "_TWINPORT_COMPLETE" in script
    program = shutil.which(shell)
    if program is not None:  # it reads it without complaint
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", "script"], cwd=tmp_path, check=True, timeout=60)


def test_another_shell_is_refused(run_command: RunCommand) -> None:
    code, _, said = run_command("completion", "tcsh")
    assert code == 2
    assert "'bash', 'zsh', 'fish'" in said
