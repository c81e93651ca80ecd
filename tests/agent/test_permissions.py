"""Who decides whether a tool may run."""

from __future__ import annotations

import pytest

from pawand.agent.permissions import Permissions
from pawand.config import Permission

Rules = dict[str, Permission]


@pytest.mark.parametrize(
    ("trusted", "workspace", "tool", "expected"),
    [
        ({}, {}, "bash", "allow"),
        ({"bash": "deny"}, {}, "bash", "deny"),
        ({"bash": "deny"}, {}, "bash2", "allow"),
        ({"*": "deny"}, {}, "bash", "deny"),
        ({"git_*": "prompt"}, {}, "git_add", "prompt"),
        ({"git_*": "prompt"}, {}, "git", "allow"),
        ({"mcp_*.x": "deny"}, {}, "mcp_a.x", "deny"),
        ({"[bc]ash": "deny"}, {}, "bash", "deny"),
        ({"BASH": "deny"}, {}, "bash", "allow"),
        # an exact name beats a glob
        ({"*": "deny", "bash": "allow"}, {}, "bash", "allow"),
        ({"bash": "allow", "*": "deny"}, {}, "bash", "allow"),
        ({"*": "allow", "bash": "prompt"}, {}, "bash", "prompt"),
        # of several globs the strictest counts, whatever their order
        ({"b*": "deny", "*": "allow"}, {}, "bash", "deny"),
        ({"*": "allow", "b*": "prompt", "ba*": "deny"}, {}, "bash", "deny"),
        ({"*": "prompt", "b*": "allow"}, {}, "bash", "prompt"),
        # a workspace only tightens
        ({"bash": "deny"}, {"bash": "allow"}, "bash", "deny"),
        ({"bash": "prompt"}, {"*": "allow"}, "bash", "prompt"),
        ({}, {"bash": "deny"}, "bash", "deny"),
        ({"bash": "allow"}, {"*": "prompt"}, "bash", "prompt"),
        ({"bash": "prompt"}, {"b*": "deny"}, "bash", "deny"),
        ({"*": "deny"}, {"bash": "allow"}, "bash", "deny"),
    ],
)
def test_the_decision(trusted: Rules, workspace: Rules, tool: str, expected: Permission) -> None:
    assert Permissions(trusted, workspace).of(tool) == expected
