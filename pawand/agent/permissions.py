"""`[permissions]`: what a tool may do. The workspace's file can only make it stricter."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from pawand.config import Permission

_STRICTNESS: list[Permission] = ["allow", "prompt", "deny"]


class Permissions:
    """Rules by exact tool name or glob. An exact name beats globs; of several globs the strictest counts."""

    def __init__(self, trusted: Mapping[str, Permission], workspace: Mapping[str, Permission]) -> None:
        self._layers = (trusted, workspace)

    def of(self, tool: str) -> Permission:
        return max((_decide(rules, tool) for rules in self._layers), key=_STRICTNESS.index)


def _decide(rules: Mapping[str, Permission], tool: str) -> Permission:
    if tool in rules:
        return rules[tool]
    matching = [decision for pattern, decision in rules.items() if fnmatchcase(tool, pattern)]
    return max(matching, key=_STRICTNESS.index, default="allow")
