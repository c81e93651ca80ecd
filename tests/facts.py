"""The file of a session as the Rust program reads it."""

from __future__ import annotations

import json
from typing import Any

from pawand.sessions.model import Session


def check_facts(stored: dict[str, Any]) -> None:
    """The format of the Rust program (facts, 3): what it needs, in the types it reads."""
    kinds = {"id": str, "model": str, "created_at": str, "updated_at": str, "messages": list, "total_tokens": int,
             "iteration_count": int, "tags": list, "notes": str, "branch_depth": int, "labels": list}  # fmt: skip
    for key, kind in kinds.items():
        assert isinstance(stored[key], kind), key
    assert stored["total_tokens"] >= 0
    for message in stored["messages"]:
        assert message["role"] in ("system", "user", "assistant", "tool")
        assert isinstance(message["content"], str)
        for call in message["tool_calls"]:
            assert isinstance(call["id"], str)
            assert isinstance(call["name"], str)
            assert "arguments" in call
        if "tool_result" in message:
            assert isinstance(message["tool_result"]["tool_call_id"], str)
            assert isinstance(message["tool_result"]["success"], bool)
    Session.decode("x", json.dumps(stored).encode())
