"""How a started program is ended with everything below it."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from pawand.tools import supervisor

TERM_GRACE_SECS = 0.5  # a cancelled turn promises that its tools are dead within a second
PIPE_SECS = 1.0


async def end(process: asyncio.subprocess.Process, *, in_bwrap: bool) -> None:
    """End a tree; what it still writes is read and dropped: asyncio takes no process for ended before its pipes are."""
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdin is not None and not process.stdin.is_closing():
        process.stdin.transport.abort()  # what was not yet taken is dropped: nobody will
    reading = asyncio.gather(_drop(process.stdout), _drop(process.stderr))
    try:
        await (_end_bwrap(process) if in_bwrap else _end_supervisor(process))
        async with asyncio.timeout(PIPE_SECS):
            await reading
    except TimeoutError:
        pass
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        # Whatever holds a pipe open still has got away (it killed its supervisors); we keep no end of the pipe for it.
        process._transport.close()  # type: ignore[attr-defined]


async def _drop(stream: asyncio.StreamReader) -> None:
    while await stream.read(64 * 1024):
        pass


async def _end_bwrap(process: asyncio.subprocess.Process) -> None:
    """TERM to the commands, then KILL to bwrap's init, which takes the whole pid namespace with it.

    bwrap itself is not killed before it has its init: one that is still setting up would outlive it.
    """
    below = await _below(process)
    for _ in range(200):
        if below or process.returncode is not None:
            break
        await asyncio.sleep(0.005)
        below = await _below(process)
    init, commands = below[:1], below[1:]
    if commands:
        supervisor.signal_all(commands, signal.SIGTERM)
        await _wait(process, TERM_GRACE_SECS)
    if process.returncode is None:
        supervisor.signal_all(init, signal.SIGKILL)
        await _wait(process, 1.0)
    if process.returncode is None:
        supervisor.signal_all([process.pid], signal.SIGKILL)
        await process.wait()


async def _end_supervisor(process: asyncio.subprocess.Process) -> None:
    """TERM, which the supervisor passes on to its whole tree, with KILL after its own grace."""
    if process.returncode is None:
        supervisor.signal_all([process.pid], signal.SIGTERM)
        await _wait(process, supervisor.GRACE_SECS + 0.3)
    if process.returncode is None:
        supervisor.signal_all([process.pid, *await _below(process)], signal.SIGKILL)
        await process.wait()


async def _below(process: asyncio.subprocess.Process) -> list[int]:
    return [] if process.returncode is not None else await asyncio.to_thread(supervisor.descendants, process.pid)


async def _wait(process: asyncio.subprocess.Process, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await process.wait()
