"""What one run of the agent keeps between its iterations: the conversation, where it is asked, what it has cost."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from pawand import wire
from pawand.agent import history
from pawand.agent.approvals import Approvals
from pawand.providers.base import Provider
from pawand.sessions.model import Message, Session
from pawand.tools.base import Registry, ToolContext
from pawand.wire import ToolCall

Item = wire.Event | Message
"""What a run says: events for those who watch, and messages that must survive a crash. The session holds such a
message, or, for a tool's result, will hold it when all calls of the answer are through."""
CLIPPED_RESULT_CHARS = 1000


class Sink(Protocol):
    """Takes what a run says and never raises: a message alone, events as many as happened together."""

    def __call__(self, *items: Item) -> None: ...


class Target(Struct, frozen=True):
    """A model, and the provider that is asked for it."""

    provider: Provider
    model: str


class Finished(Struct, frozen=True, kw_only=True):
    """What came of a run."""

    content: str
    iterations: int
    tool_calls: int
    finish_reason: str
    usage: wire.Usage
    model: str


class Run:
    """A turn, or the part of one that a child agent has. Nothing here outlives it but `session`."""

    def __init__(
        self,
        session: Session,
        targets: list[Target],
        tools: Registry,
        context: ToolContext,
        approvals: Approvals,
        emit: Sink,
        max_iterations: int,
    ) -> None:
        """`targets` are the models to ask: the first, and those to turn to when it fails."""
        self.session = session
        self.tools = tools
        self.context = context
        self.approvals = approvals
        self.emit = emit
        self.max_iterations = max_iterations
        self.system = ""
        self.iterations = 0
        self.tool_calls = 0
        self.usage = wire.Usage()
        self.targets = targets
        self.result_chars: int | None = None
        """How much of a tool's result is sent, where not all of it is."""
        self.thinks = True
        """False once a model has thought for too long."""
        self._counted: tuple[int, int] | None = None
        self._thoughts: dict[int, str] = {}
        self._last_call = b""
        self._same_calls = 0

    @property
    def target(self) -> Target:
        return self.targets[0]

    @property
    def wraps_up(self) -> bool:
        """The one that must do without tools."""
        return self.iterations > self.max_iterations

    @property
    def counted_iterations(self) -> int:
        """Without the last one that may not call tools."""
        return min(self.iterations, self.max_iterations)

    def turn_away(self, *, from_provider: bool) -> bool:
        """Ask the next model, or the next provider, from now on; False where there is none."""
        provider = self.target.provider
        rest = [t for t in self.targets[1:] if not from_provider or t.provider is not provider]
        self.targets = rest or self.targets
        return bool(rest)

    def repeats(self, call: ToolCall) -> int:
        """How often this call was made in a row, this time included."""
        made = msgspec.json.encode((call.name, call.arguments))
        self._same_calls = self._same_calls + 1 if made == self._last_call else 1
        self._last_call = made
        return self._same_calls

    # --- the conversation -------------------------------------------------------------------------

    def add(self, message: Message, thoughts: str = "") -> None:
        """Store a message. What led to it is kept for the models that must be told it again in the same turn."""
        stored = self.session.append(message)
        if thoughts and stored.tool_calls:
            self._thoughts[id(stored)] = thoughts
        self.emit(stored)

    def thoughts_on(self, message: Message) -> str:
        return self._thoughts.get(id(message), "")

    def count(self, usage: wire.Usage | None) -> None:
        """Note what an iteration cost, and with it how long the conversation is by the provider's own count."""
        if usage is None:
            usage = wire.Usage(total_tokens=self.context_tokens)
        elif usage.prompt_tokens:  # some report none for what they had in a cache
            self._counted = usage.prompt_tokens, len(self.session.messages)
        self.session.count_iteration(usage.total_tokens)
        self.spend(usage)

    def spend(self, usage: wire.Usage) -> None:
        self.usage = wire.Usage(
            prompt_tokens=self.usage.prompt_tokens + usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens + usage.completion_tokens,
            total_tokens=self.usage.total_tokens + usage.total_tokens,
        )

    def clip_results(self) -> bool:
        """Send no more than a part of each result from now on; False where that would change nothing."""
        results = (m for m in history.visible(self.session.messages) if m.role == "tool")
        helps = self.result_chars is None and any(len(m.content) > CLIPPED_RESULT_CHARS for m in results)
        self.result_chars = CLIPPED_RESULT_CHARS
        return helps

    @property
    def context_tokens(self) -> int:
        """How long the next request is: what the provider counted last, and a guess of what came since."""
        if self._counted is None:
            fixed = (len(self.system) + self.tools.characters) // history.CHARS_PER_TOKEN
            return fixed + history.estimate_tokens(history.visible(self.session.messages))
        tokens, messages = self._counted
        return tokens + history.estimate_tokens(self.session.messages[messages:])

    def shorten(self, summary: Message) -> None:
        """Store the summary that stands for the beginning of the conversation from now on."""
        self._counted = None
        self.add(summary)
