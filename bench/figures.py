"""What is measured and what is asked of it: values of several runs, a goal, and the floor of the same runs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct


class Figure(Struct, kw_only=True):
    """`goal` and `ratio_goal` are limits: what the median, or its ratio to the floor's, may be at most."""

    name: str
    unit: str
    values: list[float]
    floor: list[float] | None = None
    goal: float | None = None
    ratio_goal: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def ratio(self) -> float | None:
        """The median over the runs, each beside its floor."""
        if self.floor is None:
            return None
        return median(own / bare for own, bare in zip(self.values, self.floor, strict=True))

    @property
    def met(self) -> bool | None:
        """None where nothing is asked."""
        wants = [(self.median, self.goal), (self.ratio, self.ratio_goal)]
        asked = [(value, limit) for value, limit in wants if limit is not None and value is not None]
        return all(value <= limit for value, limit in asked) if asked else None

    @property
    def row(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**msgspec.structs.asdict(self), "median": self.median, "ratio": self.ratio, "met": self.met}


def percentile(values: Sequence[float], percent: float) -> float:
    """By the nearest rank."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def milliseconds(values: Sequence[float]) -> list[float]:
    return [1000 * value for value in values]
