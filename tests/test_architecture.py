"""The rules of docs/architecture.md, held by reading the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pawand"

# From the ground up; a module may import from its own line and those before it.
LAYERS: list[tuple[str, ...]] = [
    (
        "errors",
        "wire",
        "paths",
        "redact",
        "hardening",
        "aio",
        "event_loop",
        "garbage",
        "logs",
        "metrics",
        "procfs",
        "token_file",
    ),
    ("config", "sessions", "providers.base"),
    ("providers", "tools", "peers", "memory"),
    ("agent",),
    ("turns",),
    ("web", "client"),
    ("daemon",),
    ("cli",),
]
# Other people's packages and the only places that may import them; a place is a module or a package of modules.
HOMES: dict[str, tuple[str, ...]] = {
    "msgspec": ("",),
    "tornado": ("web", "daemon", "client", "memory", "peers"),
    "click": ("cli",),
    "rich": ("cli",),
    "tomlkit": ("cli.toml_edit",),
    "openai": ("providers.openai_chat",),
    "httpx2": ("providers.openai_chat", "tools.mcp.transport"),
    "aiohttp": ("providers.openai_chat",),
    "xllamacpp": ("providers.local",),
    "zeroconf": ("peers.mdns", "peers.watch"),
    "ifaddr": ("peers",),
    "prometheus_client": ("metrics",),
    "yaml": ("tools.skills",),
    "mcp": ("tools.mcp",),
    "mcp_types": ("tools.mcp",),
    "anyio": ("tools.mcp.transport",),
    "jsonschema": ("tools.mcp.schemas",),
    "referencing": ("tools.mcp.schemas",),
    "pydantic": ("tools.mcp.connection",),
}
HEAVY = (
    "openai",
    "tornado",
    "rich",
    "zeroconf",
    "aiohttp",
    "httpx2",
    "tomlkit",
    "xllamacpp",
    "yaml",
    "prometheus_client",
)


def module_name(file: Path) -> str:
    """`web.base` for pawand/web/base.py; a package's own name for its __init__; empty for pawand itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> Iterator[str]:
    """Full names of all that the module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("pawand.") in MODULES else node.module


def is_in(name: str, place: str) -> bool:
    return not place or name == place or name.startswith(f"{place}.")


def layer(name: str) -> int:
    """The closest entry counts: `tools.base` before `tools`."""
    fits = [(len(place), number) for number, places in enumerate(LAYERS) for place in places if is_in(name, place)]
    assert fits, f"pawand.{name} is in no layer"
    return max(fits)[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_go_down(name: str) -> None:
    ours = [target.removeprefix("pawand.") for target in imports(name) if target.startswith("pawand.")]
    assert not [f"{name} → {target}" for target in ours if layer(target) > layer(name)]


@pytest.mark.parametrize("name", MODULES)
def test_packages_stay_in_their_homes(name: str) -> None:
    strangers = []
    for target in imports(name):
        top = target.partition(".")[0]
        if top in sys.stdlib_module_names or top == "pawand":
            continue
        if not any(is_in(name, place) for place in HOMES.get(top, ())):
            strangers.append(target)
    assert not strangers, f"pawand.{name} may not import these"


def test_every_package_has_a_module_that_says_what_it_owns() -> None:
    silent = [name for name, file in MODULES.items() if file.read_text() and not ast.get_docstring(_tree(file))]
    assert silent in ([], [""]), "modules without their first lines"


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return {name.partition(".")[0] for name in child.stdout.split()}


def test_the_command_starts_light() -> None:
    assert not loaded_by("import pawand.cli.main") & set(HEAVY)


def test_every_command_starts_light() -> None:
    names = [name for name in MODULES if name.startswith("cli.")]
    assert not loaded_by("\n".join(f"import pawand.{name}" for name in names)) & set(HEAVY)


def test_the_daemon_does_not_import_the_sdk() -> None:
    late = {"openai", "aiohttp", "httpx2", "xllamacpp", "rich", "zeroconf", "mcp", "anyio", "jsonschema", "pydantic"}
    assert not loaded_by("import pawand.daemon\nimport pawand.tools.mcp.servers") & late
