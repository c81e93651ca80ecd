"""`ask_agent`: a question to another agent, on another machine or in another project."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from pawand.errors import PeerError, ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.live import Live

MAX_NAMED = 20


class AskAgent(Struct):
    name: Annotated[str, Meta(min_length=1, description="Name of the agent")]
    message: Annotated[str, Meta(min_length=1, description="The whole question or task: it sees nothing else")]


class Answer(Struct, frozen=True):
    """What another agent said at last; `session_id` is the conversation's there."""

    agent: str
    content: str
    session_id: str
    finish_reason: str


class Peers(Protocol):
    """The other agents."""

    async def ask(self, name: str, message: str, hops: int, watch: Callable[[str], None]) -> Answer:
        """Ask one, and let `watch` see what it says and does; `hops` counts the agents before it. Raises PeerError."""
        ...


def tool(peers: Peers, max_hops: int, names: Iterable[str]) -> Tool:
    """`ask_agent`, to be offered where there may be somebody to ask; `names` are those that are known beforehand."""

    async def ask_agent(args: AskAgent, context: ToolContext, emit: Emit) -> dict[str, Any]:
        """Returns `{success, agent, content, session_id, finish_reason}`."""
        if context.hops >= max_hops:
            raise ToolError(
                f"this message came from another agent already ({context.hops} of at most {max_hops}, [limits] hops), "
                "so no further agent is asked: answer with what you know and can find out yourself"
            )
        shown = context.redactor.stream()
        message = context.redactor.text(args.message)
        with contextlib.closing(Live(emit)) as live:
            try:
                answer = await peers.ask(args.name, message, context.hops + 1, lambda text: live.feed(shown.feed(text)))
            except PeerError as error:
                raise ToolError(error.message) from error
            live.feed(shown.flush())
        return {
            "success": True,
            "agent": answer.agent,
            "content": answer.content,
            "session_id": answer.session_id,
            "finish_reason": answer.finish_reason,
        }

    known = sorted(names)[:MAX_NAMED]
    return Tool(
        name="ask_agent",
        description=(
            "Ask another Pawan agent, with a workspace of its own on another machine, and wait for its answer. "
            + (f"Among them: {', '.join(known)}. " if known else "")
            + "A name that is not known is answered with those that are."
        ),
        arguments=AskAgent,
        run=ask_agent,
    )
