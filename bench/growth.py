"""How costs grow: with the session, its followers, the sessions on disk, the turns at once.

None may grow faster than what is sent: neither from the row before nor from the first. There is a margin for the
machine's own unevenness.
"""

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

MARGIN = 1.5
MESSAGES = (10, 100, 1000, 5000)
SAVED = (10, 100, 1000, 5000, 10_000, 20_000)
SLOW_SAVE_MS = 5.0
REQUEST_BYTES = 18_000
"""Of a request besides the conversation: tools and instructions."""
MESSAGE_BYTES = stock.MESSAGE_CHARS + 35
"""Of a message in a request."""


def session_length(rig: Rig, runs: int) -> list[Figure]:
    """A 20-token turn at the end of a conversation."""
    each = 5
    costs, firsts, holds = [], [], []
    for messages in MESSAGES:
        home = rig.home()
        ids = stock.store(home, runs + 1, messages, prefix="long")
        with rig.daemon(home) as daemon:
            tasks = [Turns(port=daemon.port, plan=SHORT, each=each, sessions=[id]) for id in ids]
            measured = [measure(daemon, task) for task in tasks][1:]
            costs.append(milliseconds([one.cpu / each for one in measured]))
            firsts.append(milliseconds([median(one.result.firsts) for one in measured]))
            holds.append(hold(daemon))
    sent = [REQUEST_BYTES + messages * MESSAGE_BYTES for messages in MESSAGES]
    names = [f"20-token turn after {messages:,} messages, " for messages in MESSAGES]
    cpu = grown([f"{name}CPU" for name in names], "ms", costs, sent)
    first = grown([f"{name}first token" for name in names], "ms", firsts, sent)
    return [figure for row in zip(cpu, first, holds, strict=True) for figure in row]


def saving(rig: Rig, runs: int) -> list[Figure]:
    """One save of a session, on the disk that has the bench's folder."""
    times: list[list[float]] = []
    sizes: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        store = SessionStore(Path(folder))
        for messages in SAVED:
            session = stock.conversation("saved", messages)
            times.append([])
            for _ in range(runs * 5):
                began = time.perf_counter()
                store.save(session)
                times[-1].append(1000 * (time.perf_counter() - began))
            sizes.append((Path(folder) / "saved.json").stat().st_size)
    figures = grown([f"save of {messages:,} messages" for messages in SAVED], "ms", times, sizes)
    slow = next((size for size, of in zip(sizes, times, strict=True) if median(of) > SLOW_SAVE_MS), None)
    verdict = "none of these takes over" if slow is None else f"{slow / 1000:,.0f} KB is the first of these over"
    return [*figures[:-1], _noted(figures[-1], f"{verdict} {SLOW_SAVE_MS:g} ms")]


def followers(rig: Rig, runs: int) -> list[Figure]:
    """CPU of a 500-token turn that others follow."""
    counts = (1, 100, 1000)
    home = rig.home()
    (session,) = stock.store(home, 1, 0, prefix="followed")
    with rig.daemon(home) as daemon:
        costs = []
        for count in counts:
            task = Followers(port=daemon.port, plan=LONG, session=session, count=count)
            measured = [measure(daemon, task) for _ in range(runs + 1)][1:]
            costs.append([one.cpu for one in measured])
        names = [f"500-token turn with {count:,} followers, CPU" for count in counts]
        return [*grown(names, "s", costs, [1 + count for count in counts]), hold(daemon)]


def stored_sessions(rig: Rig, runs: int) -> list[Figure]:
    """A 20-token turn beside many sessions on disk."""
    each, counts = 20, (10, 10_000)
    costs, holds = [], []
    for count in counts:
        home = rig.home()
        stock.store(home, count, 4, prefix="stored")
        with rig.daemon(home) as daemon:
            task = Turns(port=daemon.port, plan=SHORT, each=each)
            measured = [measure(daemon, task) for _ in range(runs + 1)][1:]
            costs.append(milliseconds([one.cpu / each for one in measured]))
            holds.append(hold(daemon))
    figures = grown([f"20-token turn beside {count:,} sessions, CPU" for count in counts], "ms", costs, [1, 1])
    return [figure for row in zip(figures, holds, strict=True) for figure in row]


def parallel_turns(rig: Rig, runs: int) -> list[Figure]:
    """CPU of a token, in turns of 500."""
    counts = (1, 20, 200)
    with rig.daemon() as daemon:
        costs = []
        for count in counts:
            task = Turns(port=daemon.port, plan=LONG, parallel=count)
            measured = [measure(daemon, task) for _ in range(runs + 1)][1:]
            costs.append([1e6 * one.cpu / (count * LONG.tokens) for one in measured])
        names = [f"a token of {count} turns at once, CPU" for count in counts]
        return [*grown(names, "µs", costs, [1] * len(counts)), hold(daemon)]


def grown(names: list[str], unit: str, costs: list[list[float]], sent: list[int]) -> list[Figure]:
    """A figure for each size; `sent` is how much goes out, in any unit."""
    figures = [Figure(name=names[0], unit=unit, values=costs[0])]
    for name, values, size in zip(names[1:], costs[1:], sent[1:], strict=True):
        linear = [figure.median * size / smaller for figure, smaller in zip(figures, sent, strict=False)]
        note = f"× {median(values) / figures[-1].median:.2g} for × {size / sent[len(figures) - 1]:.2g} sent"
        figures.append(Figure(name=name, unit=unit, values=values, goal=min(linear) * MARGIN, note=note))
    return figures


def _noted(figure: Figure, note: str) -> Figure:
    figure.note = f"{figure.note}; {note}"
    return figure
