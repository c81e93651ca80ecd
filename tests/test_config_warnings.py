"""Settings that are unknown, idle or not a stranger's to set: what the user is told, and what counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pawand import config
from pawand.config import RUST_ONLY_KEYS, WORKSPACE_KEYS, Config
from tests.machine import Machine

CLOUD = '[cloud]\nprovider = "openai"\nmodel = "m"'
RUST = "is a setting of the pawan terminal program; pawand does not use it"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[servr]\nport = 1", ["unknown setting `servr`; did you mean `server`?"]),
        ("[server]\nprot = 1", ["unknown setting `server.prot`; did you mean `server.port`?"]),
        ('moddel = "m"\nzzz = 1', ["unknown setting `moddel`; did you mean `model`?", "unknown setting `zzz`"]),
        ('"server.port" = 1', ["unknown setting `server.port`; did you mean `server`?"]),
        ("[discovery]\nmdns = true\ngroups = ['a b']", []),
        (CLOUD, []),
        ('[peers.a]\ntoken = "0123456789abcdef"', []),
        ('[peers.a]\ntokn = "x"', ["unknown setting `peers.a.tokn`; did you mean `peers.a.token`?"]),
        ("[mcp.x]\ncommand = 'a'\n[mcp.x.env]\nanything = 'goes'", []),
        (
            "[mcp.x]\ncommand = 'a'\nnetwrok = true",
            ["unknown setting `mcp.x.netwrok`; did you mean `mcp.x.network`?"],
        ),
        ("max_context_tokens = 5", []),
        ("[tui]\ntheme = 'x'", [f"`tui` {RUST}"]),
        ("dry_run = true", [f"`dry_run` {RUST}"]),
        ("[server]\ndry_run = true", ["unknown setting `server.dry_run`"]),
        ("temperature = 0.5\n[permissions]\n'a.b*' = 'deny'", []),
    ],
)
def test_unknown_and_idle_keys_are_warned_of(machine: Machine, text: str, expected: list[str]) -> None:
    machine.user.write_text(text)
    assert machine.load().warnings == [f"{machine.user}: {line}" for line in expected]


def test_unknown_keys_are_not_among_the_sources(machine: Machine) -> None:
    machine.user.write_text('"server.port" = 1\nzzz = 2')
    assert machine.load().sources == {}


def keys(struct: Any) -> set[str]:
    """All dotted keys of a settings Struct, its tables included."""
    found: set[str] = set()
    for name, kind in get_type_hints(struct).items():
        found |= {name} | {f"{name}.{key}" for key in (keys(kind) if hasattr(kind, "__struct_fields__") else ())}
    return found


def test_the_sets_of_keys_name_real_settings() -> None:
    assert keys(Config) >= WORKSPACE_KEYS | set(config.ENVIRONMENT.values())
    assert not keys(Config) & RUST_ONLY_KEYS


# --- the workspace's file -------------------------------------------------------------------------


def test_a_workspace_sets_only_what_it_may(machine: Machine) -> None:
    machine.user.write_text("max_retries = 7")
    allowed = 'provider = "mlx"\nmodel = "m"\ntemperature = 0.1\ntop_p = 0.2\nmax_tokens = 3\nthinking_budget = 4\n'
    allowed += 'fallback_models = ["f"]\nmax_tool_iterations = 5\nreasoning_mode = false\n'
    machine.workspace.write_text(allowed)
    found = machine.load()
    assert found.sources.keys() - {"max_retries"} == WORKSPACE_KEYS
    assert (found.config.provider, found.config.thinking_budget) == ("mlx", 4)
    assert found.warnings == []


FORBIDDEN = sorted(set(Config.__struct_fields__) - WORKSPACE_KEYS - {"permissions"})


@pytest.mark.parametrize("key", FORBIDDEN)
@pytest.mark.parametrize("value", ["{}", '"http://evil/"'], ids=["table", "text"])
def test_other_keys_of_a_workspace_are_ignored_with_one_warning(machine: Machine, key: str, value: str) -> None:
    machine.workspace.write_text(f"{key} = {value}\n")
    found = machine.load()
    assert (found.config, found.sources) == (Config(), {})
    assert found.warnings == [
        f"{machine.workspace}: `{key}` is ignored: a workspace file may not set it; "
        f"put it into {machine.user} or pass the file with --config"
    ]


def test_a_workspace_is_warned_of_unknown_keys_and_refused_for_wrong_values(machine: Machine) -> None:
    machine.workspace.write_text("temprature = 1\ntui = 3\n")
    assert machine.load().warnings == [
        f"{machine.workspace}: unknown setting `temprature`; did you mean `temperature`?",
        f"{machine.workspace}: `tui` {RUST}",
    ]
    machine.workspace.write_text("[permissions]\nbash = 'never'\n")
    assert machine.error().startswith(f"{machine.workspace}: `permissions.bash` is 'never': expected one of allow, ")


def test_permissions_of_a_workspace_are_kept_apart(machine: Machine) -> None:
    machine.user.write_text("[permissions]\nbash = 'deny'\n")
    machine.workspace.write_text("[permissions]\nbash = 'allow'\n'git_*' = 'prompt'\n")
    found = machine.load()
    assert found.config.permissions == {"bash": "deny"}
    assert found.workspace_permissions == {"bash": "allow", "git_*": "prompt"}
    assert found.stranger == str(machine.workspace)
    assert found.sources == {"permissions.bash": str(machine.user)}


def test_a_workspace_file_that_is_passed_with_config_is_trusted(machine: Machine) -> None:
    machine.workspace.write_text("[server]\nport = 4000\n")
    link = machine.root / "link.toml"
    link.symlink_to(machine.workspace)
    found = machine.load(config=str(link))
    assert (found.config.server.port, found.warnings, found.workspace_permissions) == (4000, [], {})
    assert found.stranger is None
