"""The HTTP contract in one file: every request, answer and event (docs/api.md).

Times are strings, UTC, `2026-04-14T12:00:00.123456Z`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"
MAX_MODEL_CHARS = 256
# What can be seen, of the characters with 16 bits.
_SEEN = (
    r"!-~\u00a1-\u00ac\u00ae-\u167f\u1681-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u2fff\u3001-\ud7ff"
    r"\uf900-\ufefe\uff00-\uffef"
)
MODEL_PATTERN = f"^ *[{_SEEN}][ {_SEEN}]*$"
TURN_CODES = ("provider", "empty_answer", "cancelled", "timeout", "shutdown", "storage", "internal")
"""Why a turn can fail."""

# These say more in the schema only: what decodes requests has words of its own for what is wrong.
SessionId = Annotated[str, Meta(extra_json_schema={"pattern": ID_PATTERN})]
Text = Annotated[str, Meta(extra_json_schema={"pattern": r"\S"})]
ModelName = Annotated[str, Meta(extra_json_schema={"pattern": MODEL_PATTERN, "maxLength": MAX_MODEL_CHARS})]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
TurnCode = Annotated[str, Meta(extra_json_schema={"enum": TURN_CODES})]

# --- requests -------------------------------------------------------------------------------------


class ChatRequest(Struct, frozen=True, kw_only=True):
    message: Text
    session_id: SessionId | None = None
    model: ModelName | None = None
    on_disconnect: Literal["continue", "cancel"] = "continue"


class SubmitRequest(Struct, frozen=True, kw_only=True):
    message: Text
    model: ModelName | None = None


class CreateSessionRequest(Struct, frozen=True, kw_only=True):
    session_id: SessionId | None = None
    model: ModelName | None = None
    title: str | None = None


class ForkRequest(Struct, frozen=True, kw_only=True):
    """`message_index` counts from 0, as in the list of messages; that one is the last of the new session."""

    message_index: Annotated[int, Meta(ge=0)] | None = None


Decision = Literal["allow", "allow_session", "deny"]


class PermissionAnswer(Struct, frozen=True):
    """What a user decides, and what the daemon says back."""

    decision: Decision


# --- answers --------------------------------------------------------------------------------------


class Error(Struct, frozen=True):
    """The body of every 4xx and 5xx."""

    error: str
    code: str


class Health(Struct, frozen=True, kw_only=True):
    status: str
    version: str
    uptime_secs: int
    agent_id: str


class HealthDetail(Health, frozen=True, kw_only=True):
    """What callers with full access see on top."""

    provider: str
    model: str
    sandbox: str
    active_turns: int
    reasons: list[str]


class Ready(Struct, frozen=True):
    """The answer with 200 and with 503."""

    ready: bool
    reasons: list[str]


class Peer(Struct, frozen=True, kw_only=True):
    name: str
    agent_id: str
    ip: str | None
    groups: list[str]
    port: int | None | UnsetType = UNSET
    source: str | UnsetType = UNSET
    online: bool | None | UnsetType = UNSET


class Agents(Struct, frozen=True):
    self: str
    peers: list[Peer]


class Model(Struct, frozen=True, kw_only=True):
    name: str
    provider: str
    is_default: bool


class Models(Struct, frozen=True):
    """`live` says whether the provider's own models are in it, and `reason` why not; only where they were asked for."""

    models: list[Model]
    live: bool | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class SessionCreated(Struct, frozen=True):
    session_id: str


class Submitted(Struct, frozen=True, kw_only=True):
    """`last_event_id` is the newest event before the turn: who follows from there misses nothing of it."""

    session_id: str
    turn_id: str
    last_event_id: str


class Cancelled(Struct, frozen=True):
    cancelled: bool


class SessionSummary(Struct, frozen=True, kw_only=True):
    id: str
    model: str
    created_at: Time
    updated_at: Time
    message_count: int
    title: str
    active: bool


class ToolCall(Struct, frozen=True):
    """`arguments` is the parsed JSON object, or the raw text where the model sent no JSON."""

    id: str
    name: str
    arguments: Any


class ToolResult(Struct, frozen=True):
    tool_call_id: str
    content: Any
    success: bool


class Message(Struct, frozen=True, kw_only=True):
    role: str
    content: str
    timestamp: Time
    tool_calls: list[ToolCall] | UnsetType = UNSET
    tool_result: ToolResult | UnsetType = UNSET
    interrupted: bool | UnsetType = UNSET


class SessionDetail(Struct, frozen=True, kw_only=True):
    id: str
    model: str
    created_at: Time
    updated_at: Time
    messages: list[Message]
    title: str
    active_turn: str | None
    last_event_id: str | None


class Usage(Struct, frozen=True):
    """Tokens as the provider counts them, summed over the iterations of a turn."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatAnswer(Struct, frozen=True, kw_only=True):
    session_id: str
    content: str
    iterations: int
    tool_calls: int
    turn_id: str
    finish_reason: str
    usage: Usage
    model: str


# --- events ---------------------------------------------------------------------------------------


class Event(Struct, frozen=True, kw_only=True):
    """One frame of the event stream; `event` is its name on the wire."""

    event: ClassVar[str]


class Start(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "start"
    session_id: str
    turn_id: str
    model: str


class Thinking(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "thinking"
    content: str
    iteration: int


class Token(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "token"
    content: str
    iteration: int


class ToolStart(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "tool_start"
    name: str
    id: str
    arguments: Any
    iteration: int


class ToolOutput(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "tool_output"
    id: str
    content: str


class ToolComplete(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "tool_complete"
    name: str
    success: bool
    duration_ms: int
    result_preview: str
    id: str


class PermissionRequest(Event, frozen=True, kw_only=True):
    """A call that waits for a user's decision until `expires_at`; also a row of the list of pending ones."""

    event: ClassVar[str] = "permission_request"
    id: str
    tool: str
    summary: str
    arguments: Any
    expires_at: Time


class PermissionResolved(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "permission_resolved"
    id: str
    decision: Decision
    reason: str | UnsetType = UNSET


class Retry(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "retry"
    attempt: int
    delay_ms: int
    reason: str
    model: str


class Done(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "done"
    session_id: str
    content: str
    iterations: int
    tool_calls: int
    turn_id: str
    finish_reason: str
    usage: Usage
    model: str


class Failed(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "error"
    message: str
    code: TurnCode
    turn_id: str
    session_id: str


class Resync(Event, frozen=True, kw_only=True):
    event: ClassVar[str] = "resync"
    reason: str
    session_id: str
