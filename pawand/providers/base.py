"""What the agent asks of a provider: one streamed completion, as small typed items."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from msgspec import Struct

from pawand.wire import ToolCall, Usage


class CompletionRequest(Struct, frozen=True, kw_only=True):
    """`messages` and `tools` in the form of OpenAI's chat completions API.

    `thinking` False: the model is asked not to think, even where thinking is configured.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    tool_choice: str | None = None
    thinking: bool = True


class Text(Struct, frozen=True):
    text: str


class Reasoning(Struct, frozen=True):
    text: str


class Finish(Struct, frozen=True, kw_only=True):
    """The last item of every stream that ended well. `reason` is the provider's word (`stop`, `length`, …)."""

    reason: str
    tool_calls: list[ToolCall]
    usage: Usage | None


Item = Text | Reasoning | Finish


class Provider(Protocol):
    """A source of completions."""

    def stream(self, request: CompletionRequest) -> AsyncGenerator[list[Item], None]:
        """Yield items in order, those that came together in one list, a Finish last.

        Raises ProviderError for every failure of the upstream.
        """
        ...

    def accepts_model(self, model: str) -> str | None:
        """None, or why a request may not name this model."""
        ...

    async def models(self) -> list[str]:
        """The names of those it says it has. Raises ProviderError."""
        ...

    async def aclose(self) -> None: ...
