"""`python -m bench`: measure, print a table, and fail where a goal is missed."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from bench import goals, growth
from bench.figures import Figure
from bench.rig import Rig, rig
from pawand import __version__
from pawand.sessions import disk

Scenario = Callable[[Rig, int], list[Figure]]
SCENARIOS: dict[str, Scenario] = {
    "turn": goals.one_at_a_time,
    "parallel": goals.many_at_once,
    "paced": goals.paced,
    "unpaced": goals.unpaced,
    "long-turn": goals.longest,
    "start": goals.start_and_memory,
    "status": goals.command,
    "followers": goals.followers,
    "listing": goals.listing,
    "by-session": growth.session_length,
    "by-save": growth.saving,
    "by-followers": growth.followers,
    "by-stored": growth.stored_sessions,
    "by-parallel": growth.parallel_turns,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*SCENARIOS]))
@click.option("--runs", default=5, show_default=True, help="How often each scenario is measured; medians are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(names: tuple[str, ...], runs: int, as_json: bool) -> None:
    """Measure pawand beside a bare Tornado relay. NAMES are scenarios; without any, all are run.

    Exits with 1 where a goal is missed.
    """
    facts = _facts()
    figures: list[Figure] = []
    if not as_json:
        click.echo("\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
        click.echo(f"| figure | goal | median | from – to | floor | ratio | |\n|{'---|' * 7}")
    with rig() as made:
        for name in names or SCENARIOS:
            click.echo(f"… {name}\r", err=True, nl=False)
            figures += (measured := SCENARIOS[name](made, runs))
            if not as_json:
                click.echo("\n".join(map(_row, measured)))
    if as_json:
        found = {"facts": facts, "runs": runs, "figures": [figure.row for figure in figures]}
        click.echo(msgspec.json.format(msgspec.json.encode(found)))
    missed = [figure.name for figure in figures if figure.met is False]
    if missed:
        click.echo(f"missed: {'; '.join(missed)}", err=True)
        sys.exit(1)


def _row(figure: Figure) -> str:
    """A line of the table, in Markdown."""
    limits = [f"≤ {figure.goal:.3g} {figure.unit}"] if figure.goal is not None else []
    limits += [f"≤ {figure.ratio_goal:g} × floor"] if figure.ratio_goal is not None else []
    cells = [
        figure.name,
        ", ".join(limits),
        f"{figure.median:.3g} {figure.unit}",
        f"{min(figure.values):.3g} – {max(figure.values):.3g}",
        "" if figure.floor is None else f"{statistics.median(figure.floor):.3g}",
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        " ".join(filter(None, ["MISSED" if figure.met is False else "", figure.note])),
    ]
    return f"| {' | '.join(cells)} |"


def _facts() -> dict[str, str]:
    """What the figures depend on."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "pawand": __version__,
        "machine": f"{os.cpu_count()} × {found[1] if found else platform.machine()}, Linux {platform.release()}",
        "python": f"{platform.python_version()}, which adds {_additions():.0f} million numbers a second",
        "save of 1 KB, with its two fsync": "{:.2f} ms, {:.2f} ms of CPU".format(*_save_milliseconds()),
    }


def _additions() -> float:
    """How fast the machine is just now: those that are shared change by a half within minutes."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        sum(map(int.__add__, range(500_000), range(500_000)))
        times.append(time.perf_counter() - began)
    return 0.5 / statistics.median(times)


def _save_milliseconds() -> tuple[float, float]:
    """Of the clock and of the CPU, on the disk that will have the sessions."""
    with tempfile.TemporaryDirectory() as folder:
        times, cpu = [], time.process_time()
        for _ in range(50):
            began = time.perf_counter()
            disk.replace(Path(folder) / "file", bytes(1000))
            times.append(time.perf_counter() - began)
        return 1000 * statistics.median(times), 1000 * (time.process_time() - cpu) / len(times)


if __name__ == "__main__":
    main()
