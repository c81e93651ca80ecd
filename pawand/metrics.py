"""What `/metrics` shows: figures that the daemon counts as it works, in the text format of Prometheus.

Labels take words that are known beforehand only, so that no model and no server can make the list grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from weakref import WeakSet

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pawand import __version__, wire
from pawand.errors import StorageError
from pawand.event_loop import HOLD_SECS, HoldWatch

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
MAX_TOOLS = 500
UNKNOWN = "unknown"
FINISHED = ("stop", "length", "max_iterations", "content_filter", "other")
"""Outcomes of turns with an answer; the others are the codes of their failures."""

_COUNTED = frozenset({wire.ToolStart, wire.ToolComplete, wire.Retry})
_TURN_SECS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_FIRST_TOKEN_SECS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOOL_SECS = (0.01, 0.1, 1, 10, 60, 300)


class Metrics:
    """Counted on the event loop. `tools` are the names of the tools that are always there."""

    def __init__(self, tools: Iterable[str]) -> None:
        self._registry = CollectorRegistry()
        self._tool_names = {*tools}
        self._told: WeakSet[StorageError] = WeakSet()
        self.store_failures = 0
        """How often the store could not do what was asked of it."""
        self._gauges: list[tuple[Gauge, Callable[[], int]]] = []
        ProcessCollector(registry=self._registry)
        Info("pawand_build", "The version of pawand.", registry=self._registry).info({"version": __version__})
        self._turns = self._counter("turns", "Turns that have ended, by what they came to.", "outcome")
        for outcome in (*FINISHED, *wire.TURN_CODES):
            self._turns.labels(outcome)
        self._turn_secs = self._histogram("turn", "From a message's arrival to the end of its turn.", _TURN_SECS)
        self._first_token_secs = self._histogram(
            "first_token", "From a message's arrival to the first word of the answer or of thinking.", _FIRST_TOKEN_SECS
        )
        self._tokens = self._counter("tokens", "Tokens of turns with an answer, as the provider counts them.", "kind")
        self._calls = self._counter("tool_calls", "Tool calls that were answered.", "tool", "success")
        self._tool_secs = self._histogram("tool", "How long tool calls ran.", _TOOL_SECS, "tool")
        self._retries = self._counter("upstream_retries", "How often a model was asked again.")
        self._store_errors = self._counter("store_errors", "Sessions that could not be read or written.")

    def show(self, name: str, meaning: str, read: Callable[[], int]) -> None:
        """Show `pawand_<name>`, read on the event loop whenever somebody looks."""
        self._gauges.append((Gauge(f"pawand_{name}", meaning, registry=self._registry), read))

    def show_loop(self, watch: HoldWatch) -> None:
        """Show how long the event loop keeps everybody waiting."""
        self._registry.register(_LoopHolds(watch))

    async def exposition(self) -> bytes:
        for gauge, read in self._gauges:
            gauge.set(read())
        return await asyncio.to_thread(generate_latest, self._registry)

    # --- what happens -----------------------------------------------------------------------------

    def observe(self, events: Iterable[wire.Event]) -> None:
        """Count events of a turn that runs."""
        for event in events:
            if type(event) in _COUNTED:  # most are tokens, which must cost nothing here
                self._count(event)

    def _count(self, event: wire.Event) -> None:
        match event:
            case wire.ToolStart() if len(self._tool_names) < MAX_TOOLS:
                self._tool_names.add(event.name)  # it begins, so it is a tool: those of MCP servers are known by that
            case wire.ToolComplete():
                name = event.name if event.name in self._tool_names else UNKNOWN
                self._calls.labels(name, "true" if event.success else "false").inc()
                self._tool_secs.labels(name).observe(event.duration_ms / 1000)
            case wire.Retry():
                self._retries.inc()

    def turn_ended(
        self, outcome: wire.Done | wire.Failed, total_secs: float, first_token_secs: float | None = None
    ) -> None:
        """`first_token_secs` is None where not a word was said."""
        if isinstance(outcome, wire.Done):
            self._turns.labels(outcome.finish_reason if outcome.finish_reason in FINISHED else "other").inc()
            self._tokens.labels("prompt").inc(outcome.usage.prompt_tokens)
            self._tokens.labels("completion").inc(outcome.usage.completion_tokens)
        else:
            self._turns.labels(outcome.code).inc()
        self._turn_secs.observe(total_secs)
        if first_token_secs is not None:
            self._first_token_secs.observe(first_token_secs)

    def note_failure(self, error: BaseException | None) -> None:
        """Count what the store could not do; once, however many are told of it."""
        if isinstance(error, StorageError) and error not in self._told:
            self._told.add(error)
            self.store_failures += 1
            self._store_errors.inc()

    # --- how it is made ---------------------------------------------------------------------------

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"pawand_{name}", meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"pawand_{name}_seconds", meaning, labels, registry=self._registry, buckets=buckets)


class _LoopHolds(Collector):
    """Counted where it happens, in each pass of the loop, which a Histogram of the library would make slower."""

    def __init__(self, watch: HoldWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        watch = self._watch
        bounds = [*map(floatToGoString, HOLD_SECS), "+Inf"]
        buckets = list(zip(bounds, accumulate(watch.counts), strict=True))
        meaning = "How long a pass of the event loop took; all else waits for its end."
        yield HistogramMetricFamily("pawand_loop_hold_seconds", meaning, buckets=buckets, sum_value=watch.total)
        meaning = "The longest pass of the event loop since the start."
        yield GaugeMetricFamily("pawand_loop_longest_hold_seconds", meaning, value=watch.longest)
