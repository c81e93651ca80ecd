"""Run a command and end its whole tree with it, where bubblewrap cannot: `python -I -S supervisor.py COMMAND…`.

A small process of its own (standard library only, started per command): it makes itself the reaper of every
descendant (PR_SET_CHILD_SUBREAPER), so that none escapes by setsid or double fork, passes SIGTERM on to all,
and kills what is left when the command ends. The command sees a second one as its parent, which only waits:
`kill -9 $PPID` ends that one, and the first the rest.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_SECS = 0.5


def children(pid: int) -> list[int]:
    """Those of all its threads: the kernel lists them apart."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents first."""
    found: list[int] = []
    queue = children(pid)
    while queue:
        child = queue.pop(0)
        found.append(child)
        queue += children(child)
    return found


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def sweep() -> None:
    """Kill and reap until nothing is left below us."""
    while True:
        signal_all(descendants(os.getpid()), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def main() -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def stop(number: int, frame: object) -> None:
        signal_all(descendants(os.getpid()), signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECS)

    def kill(number: int, frame: object) -> None:
        signal_all(descendants(os.getpid()), signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, kill)
    starter = os.fork()
    if starter == 0:
        os._exit(start())
    code = wait_for(starter)
    signal.setitimer(signal.ITIMER_REAL, 0)
    sweep()
    return code


def start() -> int:
    """Run the command, in a session of its own: `kill 0` in it does not reach us."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reset = [signal.SIGTERM, signal.SIGPIPE]
    return wait_for(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, setsid=True, setsigdef=reset))


def wait_for(child: int) -> int:
    """The exit code of `child`, as a shell tells it; others that end meanwhile are reaped."""
    pid = 0
    while pid != child:
        pid, status = os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
