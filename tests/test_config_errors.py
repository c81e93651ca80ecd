"""Settings that are wrong: the error names file, key, what was found and what is expected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from pawand import config
from pawand.config import Config
from pawand.errors import ConfigError
from tests.machine import Machine, as_nobody


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


WRONG = [
    ('[server]\nport = "x"', "`server.port` is 'x': expected `int`, got `str`"),
    ("[server]\nport = 99999", "`server.port` is 99999: expected `int` <= 65535"),
    ("server = 3", "`server` is 3: expected `object`, got `int`"),
    ('[server]\nhost = ["::1", 3]', "`server.host[1]` is 3: expected `str`, got `int`"),
    ("temperature = 5", "`temperature` is 5: expected `float` <= 2.0"),
    ("top_p = nan", "`top_p` is nan: expected `float` > 0.0"),
    ("max_tokens = true", "`max_tokens` is True: expected `int`, got `bool`"),
    (
        'base_url = "ftp:"',
        "`base_url` is 'ftp:': expected an address such as https://api.example.com/v1, without user and password",
    ),
    (
        '[eruka]\nurl = "http://me:secret@localhost"',
        "`eruka.url` is of type str: expected an address such as http://localhost:8081, without user and password",
    ),
    (
        '[eruka]\nworkspace_id = "a b"',
        "`eruka.workspace_id` is 'a b': expected a name of ASCII letters, digits and signs, without blanks",
    ),
    ("[eruka]\ncore_max_tokens = 0", "`eruka.core_max_tokens` is 0: expected `int` >= 1"),
    ('fallback_models = "x"', "`fallback_models` is 'x': expected `array`, got `str`"),
    ('fallback_models = ["a", 3]', "`fallback_models[1]` is 3: expected `str`, got `int`"),
    ('provider = "acme"', "`provider` is 'acme': expected one of nvidia, openai, ollama, mlx, local"),
    ("provider = [1]", "`provider` is [1]: expected `str`, got `array`"),
    (
        '[cloud]\nprovider = "x"\nmodel = "m"',
        "`cloud.provider` is 'x': expected one of nvidia, openai, ollama, mlx, local",
    ),
    ('[cloud]\nprovider = "mlx"', "`cloud` is {'provider': 'mlx'}: object missing required field `model`"),
    ('[permissions]\nbash = "maybe"', "`permissions.bash` is 'maybe': expected one of allow, prompt, deny"),
    (
        '[permissions]\na = "deny"\nb = "no"\nc = "allow"',
        "`permissions.b` is 'no': expected one of allow, prompt, deny",
    ),
    ('[permissions]\n"mcp.*" = "deny"\n"x.y" = 1', "`permissions.x.y` is 1: expected `str`, got `int`"),
    ('[permissions]\na = ["deny"]', "`permissions.a` is ['deny']: expected `str`, got `array`"),
    (
        '[discovery]\ngroups = ["a,b"]',
        "`discovery.groups[0]` is 'a,b': expected at most 32 names of 1 to 32 characters, without commas",
    ),
    (
        '[discovery]\ngroups = ["x", ""]',
        "`discovery.groups[1]` is '': expected at most 32 names of 1 to 32 characters, without commas",
    ),
    ("permissions = []", "`permissions` is []: expected `object`, got `array`"),
    ("[peers.x]\ntoken = 3", "`peers.x.token` is of type int: expected `str`, got `int`"),
    (
        '[peers.a]\ntoken = "0123456789abcdef"\n[peers.b]\ntoken = 3',
        "`peers.b.token` is of type int: expected `str`, got `int`",
    ),
    ('[peers.a]\ntoken = "0123456789abcdef"\n[peers]\nb = 4', "`peers.b` is 4: expected `object`, got `int`"),
    (
        '[peers.x]\ntoken = "too short"',
        "`peers.x.token` is of type str: expected what stands in the token file there: 16 characters or more, "
        "without blanks",
    ),
    *(
        (
            f'[peers.x]\naddress = "{address}"',
            f"`peers.x.address` is {address!r}: "
            "expected a host, host:port, or an address such as http://192.168.1.100:3300",
        )
        for address in ("", "ftp://a", "a:65536", "a b", "a/b", "http://a/?q", "fe80::1", "[::1", "a:", "ä", "//a")
    ),
    ("[limits]\nhops = -1", "`limits.hops` is -1: expected `int` >= 0"),
    ("[mcp.x]", "`mcp.x` has neither `command` nor `url`: expected one of them"),
    ("[mcp.x]\nenabled = false", "`mcp.x` has neither `command` nor `url`: expected one of them"),
    (
        '[mcp.x]\ncommand = "a"\nurl = "http://b"',
        "`mcp.x` has both `command` and `url`: expected one of them",
    ),
    ('[mcp."a b"]\ncommand = "a"', "`mcp.a b`: expected a name of 1 to 32 letters, digits, _ and -"),
    ('[mcp.""]\ncommand = "a"', "`mcp.`: expected a name of 1 to 32 letters, digits, _ and -"),
    (
        '[mcp.x]\nurl = "ftp://b"',
        "`mcp.x.url` is 'ftp://b': expected an address such as https://example.com/mcp, without user and password",
    ),
    ('[mcp.x]\ncommand = "a"\nargs = [1]', "`mcp.x.args[0]` is 1: expected `str`, got `int`"),
    ('[mcp.x]\ncommand = "a"\nenv = { K = 3 }', "`mcp.x.env.K` is of type int: expected `str`, got `int`"),
    (
        '[mcp.a]\ncommand = "x"\n[mcp.a_b]\ncommand = "y"',
        "`mcp.a` and `mcp.a_b` begin alike; call one of them otherwise",
    ),
    ("mcp = 3", "`mcp` is 3: expected `object`, got `int`"),
    ('[peers."a[0].b"]\naddress = 3', "`peers.a[0].b.address` is 3: expected `str`, got `int`"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=[text.replace("\n", " ") for text, _ in WRONG])
def test_a_wrong_value_names_file_key_found_and_expected(machine: Machine, text: str, expected: str) -> None:
    machine.user.write_text(text)
    assert machine.error() == f"{machine.user}: {expected}"


@pytest.mark.parametrize(
    ("env", "flags", "expected"),
    [
        ({"PAWAN_API_PORT": "abc"}, {}, "PAWAN_API_PORT (environment) is 'abc': expected `int`, got `str`"),
        ({"PAWAN_API_PORT": "70000"}, {}, "PAWAN_API_PORT (environment) is 70000: expected `int` <= 65535"),
        ({"PAWAN_TEMPERATURE": "hot"}, {}, "PAWAN_TEMPERATURE (environment) is 'hot': expected `float`, got `str`"),
        ({}, {"server__port": 70000}, "--port (flags) is 70000: expected `int` <= 65535"),
        ({}, {"max_tool_iterations": 0}, "--max-tool-iterations (flags) is 0: expected `int` >= 1"),
    ],
)
def test_a_wrong_variable_or_flag_is_named_as_it_was_given(
    machine: Machine, env: dict[str, str], flags: dict[str, Any], expected: str
) -> None:
    assert machine.error(env, **flags) == expected


@pytest.mark.parametrize(
    ("content", "expected", "place"),
    [
        (b"a = 1\n\nb = \n", "not valid TOML: ", "(at line 3, column 5)"),
        (b"a = 1\na = 2\n", "not valid TOML: ", "(at line 2, column 6)"),
        (b"x = " + b"[" * 5000, "not valid TOML: nested too deeply", ""),
        (b"a = 1\nb = [", "not valid TOML: ", "(at end of document)"),
        (b"# " + b"x" * 1024 * 1024, "larger than 1 MiB, so it is no file of settings", ""),
        (b"model = '\xff'", "not UTF-8 text (byte 9)", ""),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_the_place(
    machine: Machine, content: bytes, expected: str, place: str
) -> None:
    machine.user.write_bytes(content)
    message = machine.error()
    assert message.startswith(f"{machine.user}: {expected}")
    assert place in message


@pytest.mark.parametrize("which", ["system", "user", "workspace"])
def test_a_file_that_cannot_be_read_is_an_error(machine: Machine, which: str) -> None:
    file: Path = getattr(machine, which)
    file.write_text('model = "m"')
    with as_nobody(file):
        assert machine.error() == f"{file}: cannot be read: Permission denied"
    file.unlink()
    os.mkfifo(file)
    assert machine.error() == f"{file}: cannot be read: it is not a file"
    file.unlink()
    file.symlink_to("/dev/zero")
    assert machine.error() == f"{file}: cannot be read: it is not a file"


# --- anything at all ------------------------------------------------------------------------------

WORDS = {*get_type_hints(Config), *get_type_hints(config.Server), *get_type_hints(config.Peer), "tui", "bash"}
NAMES = st.sampled_from(sorted(WORDS)) | st.text(max_size=5)
LEAVES = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.dates(), st.datetimes(), st.times()
) | st.sampled_from(["allow", "openai", "http://x", 1, 0.5])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)
TABLES = st.dictionaries(NAMES, VALUES, max_size=5)


def _dump(table: dict[str, Any]) -> str | None:
    """None for what tomlkit cannot write."""
    try:
        return tomlkit.dumps(table)
    except (ValueError, TypeError, UnicodeError):
        return None


@settings(max_examples=150, deadline=None)
@given(layers=st.tuples(TABLES, TABLES, TABLES))
def test_no_file_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, layers: tuple[dict[str, Any], ...]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Machine(tmp_path_factory.mktemp("any"), monkeypatch)
        for file, table in zip((machine.system, machine.user, machine.workspace), layers, strict=True):
            file.write_text(_dump(table) or "", encoding="utf-8", errors="replace")
        try:
            found = machine.load()
        except ConfigError as error:
            assert str(machine.root) in error.message
        else:
            assert {name.partition(".")[0] for name in found.sources} <= set(Config.__struct_fields__)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60) | st.text("[]{}=.\"'#\n\\ab1-:T+", max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("bytes") / "pawan.toml"
    file.write_bytes(content)
    try:
        config.parse_toml(file)
    except ConfigError as error:
        assert error.message.startswith(f"{file}: not ")
