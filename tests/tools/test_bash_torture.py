"""`bash` under commands that do their worst: each ends in time, wholly, in little memory, and the loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pawand.redact import Redactor
from tests.tools.conftest import Bench, poll, reached

pytestmark = [pytest.mark.slow, pytest.mark.alone]

KEYS = ["nvapi-0123456789abcdef", "sk-proj-" + "aaaa" * 40 + "b", "ünïcödé-key-0123456789"]
LATE_SECS = 3.0
CANCEL_SECS = 1.0
HELD_SECS = 0.2
GROWTH_BYTES = 50 * 1024 * 1024

# `@` stands for a number that only this run uses. Those that do not end write something first.
ENDLESS = {
    "a loop": "echo up; while :; do :; done",
    "deaf to every signal": "trap '' TERM INT HUP QUIT PIPE; echo up; while :; do sleep @; done",
    "a deaf child": "(trap '' TERM; echo up; while :; do sleep @; done)",
    "deaf subshells in sessions of their own": (
        "export deaf=\"trap '' TERM HUP; setsid sleep @ & while :; do sleep @; done\"\n"
        'setsid bash -c "$deaf" & (setsid bash -c "(setsid bash -c \\"\\$deaf\\" & $deaf) & $deaf" &)\n'
        "trap '' TERM; echo up; while :; do sleep @; done"
    ),
    "hundreds of processes": (
        "echo up; for n in $(seq 300); do setsid bash -c \"trap '' TERM; sleep @; sleep @\" & done; wait"
    ),
    "a tree of processes": (
        "grow() { [ $1 = 0 ] && exec sleep @; grow $(($1 - 1)) & grow $(($1 - 1)) & wait; }\necho up; grow 8"
    ),
    "one that slips from parent to parent": (
        "python3 -c 'import os\nwhile True:\n    if os.fork(): os._exit(0)\n    os.setsid()' & echo up; sleep @"
    ),
    "many that slip from parent to parent": (
        "slip() { sleep 0.02; (trap '' TERM; slip &); }\nfor n in $(seq 8); do slip & done; echo up; sleep @"
    ),
    "stopped": "sleep @ & echo up; kill -STOP $! $$",
    "a stopped tree": "(setsid bash -c 'sleep @ & kill -STOP $! $$' &); (kill -STOP $BASHPID) & echo up; kill -STOP $$",
    "stops what runs it": "(setsid sleep @ &); echo up; kill -STOP $PPID; sleep @",
    "kills what runs it": "(setsid sleep @ &); sleep @ & echo up; kill -9 $PPID; sleep @",
    "without stdout": "echo up; exec >&-; sleep @",
    "without any output": "echo up; exec >&- 2>&-; sleep @",
    "stderr alone": "exec >&-; while :; do echo up >&2; sleep 0.01; done",
    "exec": "echo up; exec sleep @",
    "an endless flood": "exec yes @",
    "a flood on both": "yes @ >&2 & exec yes @",
    "a flood from a session of its own": "setsid sh -c 'trap \"\" TERM; exec yes @' & sleep @",
    "a flood by single bytes": "python3 -c 'import os\nwhile True: os.write(1, b\"a\")'",
    "fills a folder": "echo up; file=$(mktemp); exec 3>$file; rm $file; head -c 200M /dev/zero >&3; sleep @",
}
ENDING = {
    "a child in a session of its own": "setsid nohup sleep @ > /dev/null 2>&1 < /dev/null & disown; echo left",
    "a server left behind": "python3 -m http.server --bind 127.0.0.1 0 & echo left",
    "a deaf server left behind": "setsid bash -c 'trap \"\" TERM HUP; python3 -m http.server 0; sleep @' & echo left",
    "reads what is not there": "cat; read line; cat /dev/stdin; head -c 1 /dev/tty; python3 -c 'input()'; echo read",
    "killed": "kill -KILL $$",
    "a fault": "kill -SEGV $$",
    "kills its group": "(setsid sleep @ &); sleep @ & sleep 0.3; kill -9 0",
    "a gigabyte": "yes 'a line like many others, of sixty characters or thereabouts' | head -c 1G",
    "a line of a gigabyte": "head -c 1G /dev/zero | tr '\\0' x",
    "binary": "head -c 1M /dev/urandom > noise; for n in $(seq 40); do cat noise; done",
    "nothing but NUL": "head -c 200M /dev/zero",
    "nothing but carriage returns": "head -c 40M /dev/zero | tr '\\0' '\\r'",
    "nothing but escapes": "yes $'\\e[31m\\e[0m' | tr -d '\\n' | head -c 40M",
    "nothing of UTF-8": "head -c 40M /dev/zero | tr '\\0' '\\377'",
    "characters cut short": "yes $'\\xf0\\x9f\\x92' | tr -d '\\n' | head -c 40M",
    "a line of beginnings of keys": "yes sk-proj-aaaaaaaaaaanvapi-012345678nvapi-ünïc | tr -d '\\n' | head -c 40M",
    "a line of keys": 'yes "$(cat keys)" | tr -d "\\n" | head -c 40M',
}  # fmt: skip


@pytest.fixture
def rack(shell_bench: Bench) -> Bench:
    """A bench that keeps keys; it has run a command, so that what is made once is made."""
    (shell_bench.root / "keys").write_text("".join(KEYS))
    made = Bench(shell_bench.workspace, shell_bench.sandbox, redactor=Redactor(KEYS))
    assert made.out("echo warm") == "warm\n"
    made.emitted.clear()
    return made


@pytest.fixture
def marker() -> str:
    return f"1000{secrets.randbelow(10**12):012d}"


def marked(command: str, marker: str) -> str:
    """The command, all of whose processes carry `marker` in their arguments or environment and hold a lock."""
    return f"export MARKER={marker}\nexec 9< keys; flock -s 9\n" + command.replace("@", marker)


def survivors(bench: Bench, marker: str) -> list[str]:
    """The lock tells of those too that are gone before a list of processes is read to its end."""
    found = []
    with (bench.root / "keys").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append("one that holds the lock")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if marker.encode() in text:
                found.append(f"{folder.name} {text[:80]!r}")
    return found


@dataclass
class Strain:
    """What the daemon's process bore while a command ran."""

    started: float
    seconds: float = 0.0
    held_secs: float = 0.0
    grown: int = 0


def memory(name: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def waited_secs() -> float:
    """How long this thread could have run but had no processor: others had it, or the machine below ours."""
    queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    stolen = int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")
    return queued + stolen


@contextlib.asynccontextmanager
async def strained() -> AsyncIterator[Strain]:
    """Measures to the end of the block; a task that ticks tells how long nothing else had its turn.

    Only what the daemon's code holds counts: neither the wait for a processor nor the sweeps of the garbage collector
    through all that thousands of tests before this one have left.
    """
    strain = Strain(time.monotonic())
    gc.collect()
    gc.freeze()

    async def tick() -> None:
        last, waited = time.monotonic(), waited_secs()
        while True:
            await asyncio.sleep(0.005)
            now, now_waited = time.monotonic(), waited_secs()
            strain.held_secs = max(strain.held_secs, now - last - (now_waited - waited))
            last, waited = now, now_waited

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    strain.started = time.monotonic()
    yield strain
    strain.seconds = time.monotonic() - strain.started
    await asyncio.sleep(0.02)
    strain.grown = memory("VmHWM") - before
    ticking.cancel()
    gc.unfreeze()


def check(bench: Bench, strain: Strain, limit: float, marker: str) -> None:
    assert poll(lambda: not survivors(bench, marker), 0.2), survivors(bench, marker)
    assert strain.seconds < limit
    assert strain.held_secs < HELD_SECS
    assert strain.grown < GROWTH_BYTES


def run(bench: Bench, command: str, timeout_secs: int) -> tuple[Strain, dict[str, Any]]:
    async def main() -> tuple[Strain, dict[str, Any]]:
        async with strained() as strain:
            outcome = await bench.run("bash", command=command, timeout_secs=timeout_secs)
        return strain, outcome.content

    strain, content = asyncio.run(main())
    assert not any(key in text for key in KEYS for text in (str(content), "".join(bench.emitted)))
    return strain, content


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_ended_in_time(rack: Bench, marker: str, name: str) -> None:
    strain, content = run(rack, marked(ENDLESS[name], marker), 1)
    check(rack, strain, 1 + LATE_SECS, marker)
    assert rack.emitted
    assert not content["success"]


@pytest.mark.parametrize("name", ENDING)
def test_what_ends_leaves_nothing(rack: Bench, marker: str, name: str) -> None:
    strain, content = run(rack, marked(ENDING[name], marker), 30)
    check(rack, strain, 30 + LATE_SECS, marker)
    assert "timed_out" not in content


@pytest.mark.parametrize("name", ENDLESS)
def test_what_is_cancelled_is_dead_within_a_second(rack: Bench, marker: str, name: str) -> None:
    async def main() -> Strain:
        task = asyncio.create_task(rack.run("bash", command=marked(ENDLESS[name], marker), timeout_secs=20))
        await reached(lambda: bool(rack.emitted))
        await asyncio.sleep(0.2)
        async with strained() as strain:
            task.cancel()
            await asyncio.wait([task])
        return strain

    check(rack, asyncio.run(main()), CANCEL_SECS, marker)
