"""The documentation says what the code says: routes, fields, codes, commands, variables, settings, messages, links."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import click
import msgspec
import pytest
from msgspec import Struct

from pawand import config, errors, paths, wire
from pawand.cli import main as cli
from pawand.daemon.assembly import FIXED
from pawand.providers.catalog import CATALOG
from pawand.web import app, base

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs/api.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / "etc/pawan.toml.example").read_text()
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

NOT_SET = "(not set)"


def section(text: str, heading: str) -> str:
    """What stands below `heading` (with its `#`s) up to the next heading of the same or a higher level."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section `{heading}`"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows in `text`."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- the HTTP contract ----------------------------------------------------------------------------


def routes() -> list[str]:
    """`GET /sessions/{id}` and so on."""
    found = []
    for pattern, handler in app.ROUTES:
        verbs = handler.verbs
        assert verbs, f"{pattern} answers nothing"
        path = pattern.replace("([^/]*)", "{id}", 1).replace("([^/]*)", "{request_id}")
        found += [f"{verb} {path}" for verb in verbs]
    return found


@pytest.mark.parametrize("route", routes())
def test_every_route_is_described(route: str) -> None:
    assert f"`{route}`" in README
    assert f"[`{route}`]" in section(API, "## Routes")
    assert section(API, f"### {route}").strip()


def test_no_route_is_described_that_is_not_there() -> None:
    described = re.findall(r"^### ((?:GET|POST|DELETE|PUT|PATCH) .*)$", API, re.MULTILINE)
    assert sorted(described) == sorted(routes())


def structs() -> list[type[Struct]]:
    """All of `wire` that has fields of its own and is no event."""
    found = [kind for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, Struct)]
    return [kind for kind in found if kind is not Struct and not issubclass(kind, wire.Event)]


@pytest.mark.parametrize("kind", structs(), ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: type[Struct]) -> None:
    missing = [name for name in kind.__struct_fields__ if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", API)]
    assert not missing


@pytest.mark.parametrize("event", wire.Event.__subclasses__(), ids=lambda event: event.event)
def test_every_event_is_described(event: type[wire.Event]) -> None:
    described = {name for row in rows(section(API, f"### {event.event}")) for name in re.findall(r"`(\w+)`", row[0])}
    assert described == set(event.__struct_fields__)


def error_kinds(kind: type[errors.PawandError]) -> Iterator[type[errors.PawandError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from error_kinds(inner)


def test_every_error_code_is_described() -> None:
    described = {(row[0], row[1]) for row in rows(section(API, "## Errors")) if row[0].isdigit()}
    turn_codes = {kind.code for kind in error_kinds(errors.TurnError)} | {errors.PawandError.code}
    expected = {(str(status), f"`{code}`") for code, status in base.STATUSES.items()}
    expected |= {(str(base.STATUSES.get(code, 500)), f"`{code}`") for code in turn_codes}
    assert described == expected


def test_every_turn_code_stands_with_the_error_event() -> None:
    described = {row[1].strip("`") for row in rows(section(API, "### Turn errors")) if row[0].isdigit()}
    assert described == {kind.code for kind in error_kinds(errors.TurnError)} | {errors.PawandError.code}


# --- the command line -----------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    """`pawand sessions list` and so on, groups included."""
    found: dict[str, click.Command] = {}

    def add(name: str, command: click.Command) -> None:
        found[name] = command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for inner in command.list_commands(context):
                child = command.get_command(context, inner)
                assert child is not None
                add(f"{name} {inner}", child)

    add("pawand", cli.pawand)
    return found


@pytest.mark.parametrize(("name", "command"), commands().items(), ids=lambda value: str(value).replace(" ", "-"))
def test_every_command_and_option_is_described(name: str, command: click.Command) -> None:
    if name == "pawand":
        text = section(OPERATIONS, "## The command line").partition("### ")[0]
    else:
        text = section(OPERATIONS, f"### {name}")
    options = {option for param in command.params if isinstance(param, click.Option) for option in param.opts}
    described = {option for row in rows(text) for option in re.findall(r"`(--?[a-z-]+)", row[0])}
    assert described - {"-h", "--help"} == options
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    if arguments:
        words = [f"{str(param.name).upper()}{'...' if param.nargs == -1 else ''}" for param in arguments]
        assert f"`{name} {' '.join(words)}`" in text


def test_every_exit_code_is_described() -> None:
    described = {int(row[0]) for row in rows(section(OPERATIONS, "### Exit codes")) if row[0].isdigit()}
    assert described == {0, 1, 130, *cli.EXIT_CODES.values()}


def source_strings() -> str:
    """All string literals of the package, those of f-strings with `…` for what is filled in."""
    texts: list[str] = []
    for file in ROOT.glob("pawand/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_environment_variable_is_described() -> None:
    text = section(OPERATIONS, "## Environment variables")
    described = {name for row in rows(text) for name in re.findall(r"`([A-Z_]+)`", row[0])}
    names = set(config.ENVIRONMENT) | set(re.findall(r"\bPAWAND?_[A-Z_]+\b", source_strings()))
    for entry in CATALOG.values():
        names |= {name for name in (entry.key_variable, entry.url_variable) if name}
    assert names <= described
    for variable, key in config.ENVIRONMENT.items():
        row = next(row for row in rows(text) if f"`{variable}`" in row[0])
        assert f"`{key}`" in row[1]


def test_the_messages_of_the_troubleshooting_table_are_real() -> None:
    known = source_strings()
    messages = [row[0].removeprefix("`").removesuffix("`") for row in rows(section(OPERATIONS, "## Troubleshooting"))]
    pieces = [piece.strip(" ;:,()") for message in messages[1:] for piece in message.split("…")]
    assert not [piece for piece in pieces if piece not in known]


# --- the example configuration --------------------------------------------------------------------

SETTING = re.compile(r"^# ([a-z_]+) = (.*)$", re.MULTILINE)
TABLE = re.compile(r"^# (\[[A-Za-z_.]+\])$", re.MULTILINE)


def uncommented() -> str:
    return TABLE.sub(r"\1", SETTING.sub(r"\1 = \2", EXAMPLE))


def blocks() -> Iterator[tuple[str, str, str]]:
    """(table, key, text of the paragraph) of each setting of the example; the key of a table's own line is empty."""
    table = ""
    for paragraph in EXAMPLE.split("\n\n"):
        for line in paragraph.splitlines():
            if found := re.match(r"^(?:# )?\[([A-Za-z_.]+)\]$", line):
                table = found[1].removesuffix(".NAME")
                yield table, "", paragraph
            elif found := SETTING.match(line):
                yield table, found[1], paragraph


@pytest.fixture
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "SYSTEM_CONFIG", tmp_path / "none.toml")


def load(text: str, folder: Path) -> config.Settings:
    file = folder / "example.toml"
    file.write_text(text)
    return config.load(folder, {"config": str(file)}, {})


@pytest.mark.usefixtures("no_system_file")
def test_the_example_changes_nothing_as_it_is(tmp_path: Path) -> None:
    settings = load(EXAMPLE, tmp_path)
    assert settings.config == config.Config()
    assert not settings.warnings


@pytest.mark.usefixtures("no_system_file")
def test_the_example_is_accepted_when_all_of_it_is_uncommented(tmp_path: Path) -> None:
    one_of_two = re.sub(r'^url = "https://example.com/mcp".*\n', "", uncommented(), flags=re.MULTILINE)
    assert one_of_two != uncommented()  # a server is a program or an address
    settings = load(one_of_two, tmp_path)
    assert not settings.warnings


def fields(kind: type[Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, default or None) of every setting, tables of free keys left out."""
    types = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        inner = _table(types[field.name])
        if inner is not None:
            yield from fields(inner, f"{prefix}{field.name}.")
        elif types[field.name] not in (dict[str, Any], dict[str, config.Permission]):
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            yield prefix + field.name, None if default is msgspec.NODEFAULT else default


def _table(kind: Any) -> type[Struct] | None:
    """The Struct in `Server`, `Cloud | None` or `dict[str, Peer]`."""
    candidates = [kind, *getattr(kind, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Struct)), None)


def test_the_example_has_every_setting_with_its_default() -> None:
    document: Any = tomllib.loads(uncommented())
    marked = {f"{table}.{key}".removeprefix("."): NOT_SET in line for table, key, line in _setting_lines()}
    for key, default in fields(config.Config):
        value = document
        for part in key.split("."):
            value = value[part]
            value = value["NAME"] if part in ("peers", "mcp") else value
        assert marked[key] == (default is None), key
        if default is not None:
            assert value == default, key


def _setting_lines() -> Iterator[tuple[str, str, str]]:
    for table, key, paragraph in blocks():
        for line in paragraph.splitlines():
            if key and line.startswith(f"# {key} = "):
                yield table, key, line


# --- links and samples ----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"there is no heading {target}"


def test_every_decision_is_listed() -> None:
    listed = re.findall(r"\(decisions/([^)]+)\)", (ROOT / "docs/architecture.md").read_text())
    assert listed == sorted(page.name for page in ROOT.glob("docs/decisions/*.md"))


def test_the_readme_samples_speak_to_the_default_port() -> None:
    samples = re.findall(r"^```(?:bash|python|js)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    ports = {port for sample in samples for port in re.findall(r"localhost:(\d+)", sample)}
    assert ports == {str(config.Server().port)}


def test_the_python_sample_is_python() -> None:
    [sample] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    ast.parse(sample)


def test_every_command_module_is_a_command() -> None:
    for module in cli.COMMANDS.values():
        assert isinstance(importlib.import_module(f"pawand.cli.{module}").command, click.Command)


def test_the_example_names_the_settings_that_count_from_the_next_start() -> None:
    text = EXAMPLE.replace("\n# ", " ")
    [said] = re.findall(r"These count from the next start only: (.*)\.$", text.partition("\n\n")[0], re.MULTILINE)
    some, whole = said.split("all of ")
    named = re.findall(r"\[(\w+)\]", whole)
    for keys, table in re.findall(r"((?:\w+(?:, | and ))*\w+) in \[(\w+)\]", some):
        named += [f"{table}.{key}" for key in re.split(", | and ", keys)]
    named += ["skills_repo"] if "skills_repo" in some else []
    assert sorted(named) == sorted(FIXED)
