"""A session as it lies on disk: the Rust `pawan`'s JSON document plus fields that it tolerates (facts 3).

The document stays a dict, so fields we do not know survive a save; `messages` gives the typed view.
"""

from __future__ import annotations

import copy
import re
import uuid
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from pawand.errors import BadRequestError
from pawand.wire import ID_PATTERN, ToolCall, ToolResult

_ID = re.compile(ID_PATTERN)
_TITLE_CHARS = 60


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_result: ToolResult | None = None
    timestamp: str | None = None
    interrupted: bool = False
    replaces: int = 0
    """A summary's: it stands for so many messages from the first, which stay in the file."""


class _Document(Struct, frozen=True, kw_only=True):
    """What a file must hold to be a session (facts 3, "required on read")."""

    id: str
    model: str
    created_at: str
    updated_at: str
    messages: list[Message]
    title: str | None = None
    pinned_model: str | None = None


class Summary(Struct, frozen=True, kw_only=True):
    """A row of the listing; `id` is the file's name, times are as on the wire."""

    id: str
    model: str
    created_at: str
    updated_at: str
    message_count: int
    title: str


class Session:
    """One conversation. `id` is the name of its file, whatever the document says inside."""

    def __init__(self, id: str, doc: dict[str, Any], messages: list[Message]) -> None:
        self.id = id
        self._doc = doc
        self._messages = messages

    @classmethod
    def new(cls, id: str, model: str, *, title: str | None = None, pinned_model: str | None = None) -> Session:
        created = now()
        doc: dict[str, Any] = {
            "id": id,
            "model": model,
            "created_at": created,
            "updated_at": created,
            "messages": [],
            "total_tokens": 0,
            "iteration_count": 0,
            "tags": [],
            "notes": "",
            "parent_id": None,
            "root_id": None,
            "branch_label": None,
            "branch_depth": 0,
            "labels": [],
        }
        if title is not None:
            doc["title"] = title
        if pinned_model is not None:
            doc["pinned_model"] = pinned_model
        return cls(id, doc, [])

    @classmethod
    def decode(cls, id: str, data: bytes) -> Session:
        """Raises ValueError (or a subclass) where `data` is no session."""
        try:
            doc = msgspec.json.decode(data)
            typed = msgspec.convert(doc, _Document)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        parse_time(typed.created_at)
        parse_time(typed.updated_at)
        return cls(id, doc, typed.messages)

    def encode(self) -> bytes:
        """The bytes of the file: two spaces of indent, raw UTF-8, no newline at the end, as the Rust program writes."""
        return msgspec.json.format(msgspec.json.encode(self._doc), indent=2)

    @property
    def messages(self) -> list[Message]:
        return self._messages

    @property
    def model(self) -> str:
        return str(self._doc["model"])

    @property
    def pinned_model(self) -> str | None:
        return self._doc.get("pinned_model")

    @property
    def created_at(self) -> datetime:
        return parse_time(self._doc["created_at"])

    @property
    def updated_at(self) -> datetime:
        return parse_time(self._doc["updated_at"])

    @property
    def title(self) -> str:
        """The stored title, else the beginning of the first user message."""
        return title_of(self._doc.get("title"), self._messages)

    def set_model(self, model: str) -> None:
        self._doc["model"] = model

    def count_iteration(self, total_tokens: int) -> None:
        """Note one more answer of the provider and the size of the conversation in tokens."""
        count = self._doc.get("iteration_count")
        self._doc["iteration_count"] = (count if isinstance(count, int) else 0) + 1
        self._doc["total_tokens"] = total_tokens

    def append(self, message: Message) -> Message:
        """Add a message, stamped with the current time unless it has one, and return it as it is kept."""
        if message.timestamp is None:
            message = msgspec.structs.replace(message, timestamp=now())
        self._messages.append(message)
        document = msgspec.to_builtins(message)
        document.setdefault("tool_calls", [])  # always written by the Rust program
        self._doc["messages"].append(document)
        self._doc["updated_at"] = message.timestamp
        return message

    def fork(self, id: str, count: int) -> Session:
        """A session of its own with the first `count` messages, and everything else that the file says.

        A summary stands for messages before it, so those that are left mean what they meant.
        """
        doc = copy.deepcopy(self._doc)
        created = now()
        doc |= {"id": id, "created_at": created, "updated_at": created, "messages": doc["messages"][:count]}
        if count < len(self._messages) and isinstance(doc.get("labels"), list):
            doc["labels"] = [label for label in doc["labels"] if _is_before(label, count)]
        return Session(id, doc, self._messages[:count])

    def summary(self) -> Summary:
        return Summary(
            id=self.id,
            model=self.model,
            created_at=wire_time(self.created_at),
            updated_at=wire_time(self.updated_at),
            message_count=len(self._messages),
            title=self.title,
        )


def unfinished(call: ToolCall) -> Message:
    """The result of a call that was cut off: every call has one, whatever happened."""
    content = {"error": "interrupted before it finished; its effects are unknown", "tool": call.name}
    result = ToolResult(tool_call_id=call.id, content=content, success=False)
    return Message(role="tool", content=msgspec.json.encode(content).decode(), tool_result=result)


def new_id() -> str:
    return str(uuid.uuid4())


def check_id(id: str) -> str:
    """Return `id`, or raise BadRequestError: it becomes a file name, so only a plain word is one."""
    if not _ID.fullmatch(id):
        raise BadRequestError(
            "bad session id: use 1 to 128 letters, digits, `-` and `_`, beginning with a letter or digit"
        )
    return id


def is_id(id: str) -> bool:
    return _ID.fullmatch(id) is not None


def _is_before(label: Any, count: int) -> bool:
    """Whether a label of the Rust program is none of a message that is left out."""
    place = label.get("message_index") if isinstance(label, dict) else None
    return not isinstance(place, int) or place < count


def title_of(title: str | None, messages: list[Message]) -> str:
    if title:
        return title
    first = next((m.content for m in messages if m.role == "user"), "")
    words = " ".join(first.split())
    return words if len(words) <= _TITLE_CHARS else words[: _TITLE_CHARS - 1] + "…"


def parse_time(text: str) -> datetime:
    """RFC 3339 with any number of fraction digits (chrono writes nine); raises ValueError."""
    time = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"time out of range: {text}") from error


def now() -> str:
    return file_time(datetime.now(UTC))


def file_time(time: datetime) -> str:
    """`2026-04-14T12:00:00.123456+00:00`, always six digits, as the Rust program can compare as text."""
    return time.isoformat(timespec="microseconds")


def wire_time(time: datetime) -> str:
    """`2026-04-14T12:00:00.123456Z`."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
