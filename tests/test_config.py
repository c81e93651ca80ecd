"""Settings: which layer wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from pawand import config
from pawand.config import Config, Settings
from tests.machine import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_defaults_without_any_file(machine: Machine) -> None:
    found = machine.load()
    assert found == Settings(Config(), {}, [], {}, None)
    assert (found.config.server.port, found.config.max_tool_iterations, found.config.temperature) == (3300, 50, 1.0)
    assert (found.config.sandbox.network, found.config.discovery.mdns, found.config.reasoning_mode) == (
        False,
        False,
        True,
    )


def test_each_layer_beats_the_ones_before_it(machine: Machine) -> None:
    layers = [machine.system, machine.user, machine.workspace, machine.extra]
    for number, file in enumerate(layers):
        file.write_text(f'model = "m{number}"\n')
    sources = [str(file) for file in layers] + ["PAWAN_MODEL", "--model"]
    env, flags = {"PAWAN_MODEL": "m4"}, {"model": "m5", "config": str(machine.extra)}
    for number in reversed(range(6)):
        found = machine.load(env, **flags)
        assert (found.config.model, found.sources["model"]) == (f"m{number}", sources[number])
        match number:
            case 5:
                del flags["model"]
            case 4:
                env.clear()
            case 3:
                del flags["config"]
            case _:
                layers[number].unlink()
    assert machine.load(env, **flags).config.model is None


def test_layers_are_merged_key_by_key(machine: Machine) -> None:
    machine.system.write_text('temperature = 0.5\nfallback_models = ["a", "b"]\n[server]\nport = 1\nhost = "::1"\n')
    machine.user.write_text('fallback_models = ["c"]\n[server]\nport = 2\n[permissions]\nbash = "deny"\n')
    found = machine.load({"PAWAN_API_PORT": "3", "PAWAN_AGENT_ID": " pawan@x ", "PAWAN_MODEL": " "}, temperature=None)
    assert found.config.server == config.Server(host="::1", port=3, agent_id="pawan@x")
    assert (found.config.temperature, found.config.fallback_models) == (0.5, ["c"])
    assert found.sources == {
        "temperature": str(machine.system),
        "fallback_models": str(machine.user),
        "server.host": str(machine.system),
        "server.port": "PAWAN_API_PORT",
        "server.agent_id": "PAWAN_AGENT_ID",
        "permissions.bash": str(machine.user),
    }


def test_a_plain_value_and_a_table_of_one_name_do_not_clash(machine: Machine) -> None:
    machine.system.write_text("[eruka]\na = 1\n[eruka.b]\nc = 2\n")
    machine.user.write_text("[eruka]\nb = 3\n[eruka.a]\nd = 4\n")
    assert machine.load().config.eruka == config.Eruka()


def test_one_layer_completes_what_another_says_of_a_server(machine: Machine) -> None:
    machine.system.write_text('[mcp.files]\ncommand = "serve"\nargs = ["-x"]\nenv = { A = "1" }\n')
    machine.user.write_text("[mcp.files]\nenabled = false\nenv = { B = '2' }\n[mcp.far]\nurl = 'http://[::1]:80/mcp'\n")
    assert machine.load().config.mcp == {
        "files": config.Mcp(command="serve", args=["-x"], env={"A": "1", "B": "2"}, enabled=False),
        "far": config.Mcp(url="http://[::1]:80/mcp"),
    }


def test_the_named_file_may_come_from_the_environment_and_must_exist(machine: Machine) -> None:
    machine.extra.write_text('model = "named"\n')
    assert machine.load({"PAWAND_CONFIG": str(machine.extra)}).config.model == "named"
    machine.extra.unlink()
    assert (
        machine.error({"PAWAND_CONFIG": str(machine.extra)})
        == f"{machine.extra}: cannot be read: No such file or directory"
    )
    assert machine.error(config=str(machine.root)) == f"{machine.root}: cannot be read: Is a directory"


def test_environment_values_are_converted(machine: Machine) -> None:
    env = {
        "PAWAN_PROVIDER": " NIM ",
        "PAWAN_TEMPERATURE": "0.25",
        "PAWAN_MAX_TOKENS": "12",
        "PAWAN_MAX_ITERATIONS": "13",
        "PAWAN_MAX_RESULT_CHARS": "1400",
        "PAWAN_FALLBACK_MODELS": " a , , b ",
        "PAWAN_MODEL": "12",
    }
    found = machine.load(env).config
    assert (found.provider, found.temperature, found.max_tokens, found.max_tool_iterations) == ("nvidia", 0.25, 12, 13)
    assert (found.max_result_chars, found.fallback_models, found.model) == (1400, ["a", "b"], "12")


@pytest.mark.parametrize("value", ["nim", "mlx-lm"])
def test_provider_aliases_hold_in_files_and_flags(machine: Machine, value: str) -> None:
    expected = {"nim": "nvidia", "mlx-lm": "mlx"}[value]
    assert machine.load(provider=value).config.provider == expected
    machine.user.write_text(f'provider = "{value}"')
    assert machine.load().config.provider == expected


@pytest.mark.parametrize(
    ("user", "workspace", "env", "base_url"),
    [
        ('provider = "openai"\nbase_url = "http://u/v1"', "", {}, "http://u/v1"),
        ('provider = "openai"\nbase_url = "http://u/v1"', 'provider = "nvidia"', {}, None),
        ('provider = "openai"\nbase_url = "http://u/v1"', 'provider = "openai"', {}, "http://u/v1"),
        ('provider = "openai"\nbase_url = "http://u/v1"', "", {"PAWAN_PROVIDER": "mlx"}, None),
        ('provider = "openai"\nbase_url = "http://u/v1"', 'model = "m"', {}, "http://u/v1"),
        ('base_url = "http://u/v1"', 'provider = "openai"', {}, None),
    ],
)
def test_base_url_belongs_to_the_provider_of_its_layer(
    machine: Machine, user: str, workspace: str, env: dict[str, str], base_url: str | None
) -> None:
    machine.user.write_text(user)
    machine.workspace.write_text(workspace)
    found = machine.load(env)
    assert found.config.base_url == base_url
    assert found.sources.get("base_url") == (str(machine.user) if base_url else None)


def test_a_later_layer_brings_its_own_provider_and_base_url(machine: Machine) -> None:
    machine.system.write_text('provider = "openai"\nbase_url = "http://old/v1"')
    machine.user.write_text('provider = "mlx"\nbase_url = "http://new/v1"')
    assert (machine.load().config.provider, machine.load().config.base_url) == ("mlx", "http://new/v1")
