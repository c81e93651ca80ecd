"""Commands that people and prompts of shells wait for answer at once."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import harness

LIMIT_SECS = 0.15
RUNS = 7
# What an interpreter alone needs here, on a machine that is idle; the limit is for such a machine.
BARE_SECS = 0.02
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "help": (["--help"], {}),
    "status": (["status"], {}),
    "status-json": (["status", "--json"], {}),
    "version": (["version"], {}),
}
"""Arguments and environment; each must succeed where a daemon runs."""


def median(command: Sequence[str], env: Mapping[str, str]) -> float:
    """The seconds of a whole process. One run is not counted: it may have to compile."""
    found = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_there_at_once(tmp_path: Path, env: dict[str, str], name: str) -> None:
    arguments, more = COMMANDS[name]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        environ = {**pawand.env, **more}
        bare = median([sys.executable, "-c", "pass"], environ)
        found = median([str(harness.COMMAND), *arguments], environ)
    # A machine that is slow, or busy with others, starts the bare interpreter later by as much.
    limit = LIMIT_SECS * max(1.0, bare / BARE_SECS)
    assert found < limit, f"{name}: {found:.3f} s, a bare interpreter {bare:.3f} s"
