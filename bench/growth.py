"""How costs grow: with the session, its followers, the sessions on disk, the turns at once."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from bench import stock
from bench.client import Followers, Turns
from bench.figures import Figure, milliseconds
from bench.goals import LONG, SHORT, hold, measure
from bench.rig import Rig
from pawand.sessions.store import SessionStore

SESSIONS = (10, 100, 1000, 5000)


def session_length(rig: Rig, runs: int) -> list[Figure]:
    """A 20-token turn at the end of a conversation."""
    each = 5
    figures = []
    for messages in SESSIONS:
        with rig.home() as home:
            ids = stock.store(home, runs + 1, messages, prefix="long")
            with rig.daemon(home) as daemon:
                tasks = [Turns(port=daemon.port, plan=SHORT, each=each, sessions=[id]) for id in ids]
                measured = [measure(daemon, task) for task in tasks][1:]
                name = f"20-token turn after {messages:,} messages"
                firsts = milliseconds([median(one.result.firsts) for one in measured])
                figures += [
                    Figure(name=f"{name}, CPU", unit="ms", values=milliseconds([one.cpu / each for one in measured])),
                    Figure(name="… first token", unit="ms", values=firsts),
                    hold(daemon),
                ]
    return figures


def saving(rig: Rig, runs: int) -> list[Figure]:
    """One save of a session, on the disk that has the bench's folder."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        store = SessionStore(Path(folder))
        for messages in SESSIONS:
            session = stock.conversation("saved", messages)
            times = []
            for _ in range(runs * 5):
                began = time.perf_counter()
                store.save(session)
                times.append(time.perf_counter() - began)
            size = (Path(folder) / "saved.json").stat().st_size / 1024
            name = f"save of {messages:,} messages"
            figures.append(Figure(name=name, unit="ms", values=milliseconds(times), note=f"{size:,.0f} KiB"))
    return figures


def followers(rig: Rig, runs: int) -> list[Figure]:
    """CPU of a 500-token turn that others follow."""
    figures = []
    with rig.home() as home:
        (session,) = stock.store(home, 1, 0, prefix="followed")
        with rig.daemon(home) as daemon:
            for count in (1, 100, 1000):
                task = Followers(port=daemon.port, plan=LONG, session=session, count=count)
                measured = [measure(daemon, task) for _ in range(runs)]
                name = f"500-token turn with {count:,} followers, CPU"
                figures.append(Figure(name=name, unit="s", values=[one.cpu for one in measured]))
            return [*figures, hold(daemon)]


def stored_sessions(rig: Rig, runs: int) -> list[Figure]:
    """A 20-token turn beside many sessions on disk."""
    each = 20
    figures = []
    for count in (10, 10_000):
        with rig.home() as home:
            stock.store(home, count, 4, prefix="stored")
            with rig.daemon(home) as daemon:
                task = Turns(port=daemon.port, plan=SHORT, each=each)
                measured = [measure(daemon, task) for _ in range(runs + 1)][1:]
                values = milliseconds([one.cpu / each for one in measured])
                figures.append(Figure(name=f"20-token turn beside {count:,} sessions, CPU", unit="ms", values=values))
    return figures


def parallel_turns(rig: Rig, runs: int) -> list[Figure]:
    """CPU of a token, in turns of 500."""
    figures = []
    with rig.daemon() as daemon:
        for parallel in (1, 20, 200):
            task = Turns(port=daemon.port, plan=LONG, parallel=parallel)
            measured = [measure(daemon, task) for _ in range(runs + 1)][1:]
            values = [1e6 * one.cpu / (parallel * LONG.tokens) for one in measured]
            figures.append(Figure(name=f"token in {parallel} turns at once, CPU", unit="µs", values=values))
        return [*figures, hold(daemon)]
