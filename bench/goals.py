"""The goals of docs/performance.md, a scenario each: a daemon of its own, the floor beside it in every run."""

from __future__ import annotations

import subprocess
import time
from statistics import median

from msgspec import Struct

from bench import stock
from bench.client import Followers, Pings, Result, Turns
from bench.figures import Figure, milliseconds, percentile
from bench.rig import COMMAND, Client, Rig, Server, run, wait_healthy, wait_warm
from bench.upstream import Plan

MB, KB = 1e6, 1e3
HOLD_GOAL_MS = 50.0
SHORT, LONG, LONGEST = Plan(20), Plan(500), Plan(2000)
PARALLEL = 20
PACED, PACED_PARALLEL = Plan(500, rate=50), 200


class Measured(Struct, frozen=True):
    """What the clients of a task saw, the CPU seconds of the server meanwhile, and how /health answered."""

    result: Result
    cpu: float
    health: Result | None = None


def measure(server: Server, task: Turns | Followers, *, with_health: bool = False) -> Measured:
    load = Client(task)
    probe = Client(Pings(port=server.port, path="/health", pause=0.01)) if with_health else None
    before = server.cpu
    load.tell()
    if probe is not None:
        probe.tell()
    load.wait()
    cpu = server.cpu - before
    if probe is not None:
        probe.tell()
        probe.wait()
    return Measured(load.result(), cpu, None if probe is None else probe.result())


def beside_floor(
    rig: Rig, daemon: Server, runs: int, plan: Plan, *, parallel: int = 1, each: int = 1, with_health: bool = False
) -> tuple[list[Measured], list[Measured]]:
    """The same turns through the daemon and through the floor, one after the other, after one to warm up."""
    own: list[Measured] = []
    bare: list[Measured] = []
    for number in range(runs + 1):
        for server, found in ((daemon, own), (rig.floor, bare)):
            task = Turns(port=server.port, plan=plan, parallel=parallel, each=each, bare=server is rig.floor)
            one = measure(server, task, with_health=with_health and number > 0)
            if number:
                found.append(one)
    return own, bare


def hold(server: Server) -> Figure:
    return _held([server.longest_hold])


def _held(seconds: list[float]) -> Figure:
    """By what `/metrics` said at the end of each daemon; the longest of all is what counts."""
    name = "… event loop held at most"
    return Figure(name=name, unit="ms", values=milliseconds([max(seconds)]), goal=HOLD_GOAL_MS)


def _walls(runs: list[Measured]) -> list[float]:
    return [one.result.wall for one in runs]


def _cpu(runs: list[Measured], parts: float = 1.0) -> list[float]:
    return [one.cpu / parts for one in runs]


def _health_p95(runs: list[Measured]) -> list[float]:
    return milliseconds([percentile(one.health.wholes, 95) for one in runs if one.health is not None])


def _clients(runs: list[Measured]) -> str:
    return f"clients' CPU {median(one.result.cpu / one.result.wall for one in runs):.0%}"


def one_at_a_time(rig: Rig, runs: int) -> list[Figure]:
    """Short turns, one after the other, each in a new session."""
    each = 50
    with rig.daemon() as daemon:
        own, bare = beside_floor(rig, daemon, runs, SHORT, each=each)
        firsts, bare_firsts = (milliseconds([median(one.result.firsts) for one in of]) for of in (own, bare))
        return [
            Figure(name="first token, warm", unit="ms", values=firsts, floor=bare_firsts, goal=10),
            Figure(
                name="CPU of a 20-token turn",
                unit="ms",
                values=milliseconds(_cpu(own, each)),
                floor=milliseconds(_cpu(bare, each)),
                goal=5,
            ),
            hold(daemon),
        ]


def many_at_once(rig: Rig, runs: int) -> list[Figure]:
    """20 turns of 500 tokens at once, each event a write of the upstream's, and in one piece.

    So little work is uneven: three times as many runs.
    """
    runs *= 3
    with rig.daemon() as daemon:
        own, bare = beside_floor(rig, daemon, runs, LONG, parallel=PARALLEL)
        note = f"{runs} runs, {_clients(own)}"
        figures = [
            Figure(name="20 × 500 tokens, wall", unit="s", values=_walls(own), floor=_walls(bare), goal=0.5),
            Figure(name="… CPU", unit="s", values=_cpu(own), floor=_cpu(bare), ratio_goal=3, note=note),
        ]
        own, bare = beside_floor(rig, daemon, runs, Plan(500, whole=True), parallel=PARALLEL)
        return [
            *figures,
            Figure(name="… CPU where each answer comes in one piece", unit="s", values=_cpu(own), floor=_cpu(bare)),
            hold(daemon),
        ]


def paced(rig: Rig, runs: int) -> list[Figure]:
    """200 turns of 50 tokens a second for 10 seconds: /health, and how late the tokens come."""
    with rig.daemon() as daemon:
        own, bare = beside_floor(rig, daemon, runs, PACED, parallel=PACED_PARALLEL, with_health=True)
        name = "/health p95, 200 turns at 50 tokens/s"
        figures = [Figure(name=name, unit="ms", values=_health_p95(own), floor=_health_p95(bare), goal=20)]
        for percent in (50, 99):
            late, bare_late = (
                milliseconds([percentile(one.result.delays, percent) for one in of]) for of in (own, bare)
            )
            name = f"… upstream's write to client's read, p{percent}"
            figures.append(Figure(name=name, unit="ms", values=late, floor=bare_late))
        shares, bare_shares = ([100 * one.cpu / one.result.wall for one in of] for of in (own, bare))
        share = Figure(name="… share of a CPU", unit="%", values=shares, floor=bare_shares, note=_clients(own))
        return [*figures, share, hold(daemon)]


def unpaced(rig: Rig, runs: int) -> list[Figure]:
    """/health while 20 connections run turns of 500 tokens as fast as they can."""
    with rig.daemon() as daemon:
        own, bare = beside_floor(rig, daemon, runs, LONG, parallel=PARALLEL, each=15, with_health=True)
        name = "/health p95, 20 × 500 tokens without a pause"
        return [
            Figure(name=name, unit="ms", values=_health_p95(own), floor=_health_p95(bare), ratio_goal=1.25),
            hold(daemon),
        ]


def longest(rig: Rig, runs: int) -> list[Figure]:
    with rig.daemon() as daemon:
        own, bare = beside_floor(rig, daemon, runs, LONGEST)
        return [
            Figure(name="one turn of 2,000 tokens", unit="s", values=_walls(own), floor=_walls(bare), goal=0.1),
            hold(daemon),
        ]


def start_and_memory(rig: Rig, runs: int) -> list[Figure]:
    """From the start of the process to its first answer, and what it holds then and later."""
    starts, fresh, idle, loaded, holds = [], [], [], [], []
    for _ in range(runs):
        home = rig.home()
        began = time.monotonic()
        with rig.starting(home) as daemon:
            wait_healthy(daemon)
            starts.append(time.monotonic() - began)
            fresh.append(daemon.resident / MB)
            wait_warm(daemon)
            idle.append(daemon.resident / MB)
            run(Turns(port=daemon.port, plan=LONG, parallel=PARALLEL))
            loaded.append(daemon.resident / MB)
            holds.append(daemon.longest_hold)
    return [
        Figure(name="start to first answer of /health", unit="s", values=starts, goal=0.5),
        Figure(name="memory at that answer", unit="MB", values=fresh, goal=45),
        Figure(name="… idle, openai imported", unit="MB", values=idle, goal=90),
        Figure(name="… after 20 × 500 tokens", unit="MB", values=loaded, goal=120),
        _held(holds),
    ]


def command(rig: Rig, runs: int) -> list[Figure]:
    """`pawand status` as a whole process, a daemon running."""
    home = rig.home()
    with rig.daemon(home) as daemon:
        values = []
        for _ in range(runs):
            times = []
            for _ in range(5):
                began = time.monotonic()
                subprocess.run([COMMAND, "status"], env=rig.environment(home), check=True, stdout=subprocess.DEVNULL)
                times.append(time.monotonic() - began)
            values.append(median(times))
        return [Figure(name="`pawand status`", unit="s", values=values, goal=0.15), hold(daemon)]


def followers(rig: Rig, runs: int) -> list[Figure]:
    """1,000 open event streams on one session, and a turn of 500 tokens."""
    few, many = 100, 1000
    walls, memory, holds = [], [], []
    for _ in range(runs):
        home = rig.home()
        (session,) = stock.store(home, 1, 0, prefix="followed")
        with rig.daemon(home) as daemon:
            peaks = []
            for count in (few, many):
                daemon.forget_peak()
                wall = run(Followers(port=daemon.port, plan=LONG, session=session, count=count)).wall
                peaks.append(daemon.resident_peak)
            walls.append(wall)
            memory.append((peaks[1] - peaks[0]) / (many - few) / KB)
            holds.append(daemon.longest_hold)
    return [
        Figure(name="1,000 followers of 500 tokens: all have all", unit="s", values=walls),
        Figure(name="… memory of each, from 100 to 1,000 of them", unit="KB", values=memory, goal=20),
        _held(holds),
    ]


def listing(rig: Rig, runs: int) -> list[Figure]:
    """`GET /sessions` of 10,000, which were listed before."""
    count = 10_000
    home = rig.home()
    stock.store(home, count, 4, prefix="listed")
    with rig.daemon(home) as daemon:
        task = Pings(port=daemon.port, path="/sessions", count=5, rows=count)
        values = [median(run(task).wholes) for _ in range(runs)]
        return [Figure(name="GET /sessions, 10,000 of them", unit="s", values=values, goal=0.1), hold(daemon)]
