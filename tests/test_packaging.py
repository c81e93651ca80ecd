"""What is installed: the metadata, the wheel, the systemd units."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import pawand

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "systemd").glob("*.*"))
MOST_EXPOSURE = 3.0
# bubblewrap could not mount its own /proc, or make its namespaces, with any of these.
FORBIDDEN = (
    "ProtectKernelTunables",
    "ProtectKernelLogs",
    "ProtectHostname",
    "ProtectProc",
    "ProcSubset",
    "RestrictNamespaces",
    "PrivateUsers",
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("pawand", "bin"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": str(folder)})
    assert built.returncode == 0, built.stdout + built.stderr
    [file] = folder.glob("*.whl")
    return file


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def required(wheel: Path) -> dict[str, set[str]]:
    """Extra (empty for none) → names of the packages that it needs."""
    found: dict[str, set[str]] = {}
    for line in metadata(wheel).get_all("Requires-Dist", []):
        package = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        assert package
        found.setdefault(extra[1] if extra else "", set()).add(package[0].lower())
    return found


def test_metadata(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["Name"] == "pawand"
    assert found["Version"] == pawand.__version__
    assert found["Requires-Python"] == ">=3.11"
    assert "MIT" in (found["License"] or found["License-Expression"])
    assert set(found.get_all("Provides-Extra", [])) == {"ast-grep", "local", "mcp", "test", "dev"}


def test_requirements(wheel: Path) -> None:
    found = required(wheel)
    assert found[""] == {
        "tornado",
        "click",
        "tomlkit",
        "openai",
        "zeroconf",
        "msgspec",
        "rich",
        "pathspec",
        "pyyaml",
        "prometheus-client",
    }
    assert found["local"] == {"xllamacpp"}
    assert found["mcp"] == {"mcp"}
    assert found["ast-grep"] == {"ast-grep-cli"}
    assert {"pytest", "pytest-tornado", "requests", "sseclient-py"} <= found["test"]
    assert {"mypy", "ruff", "pre-commit"} <= found["dev"]


def test_the_wheel_holds_the_whole_package(wheel: Path) -> None:
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "pawand").rglob("*.py")}
    packaged = {name for name in names(wheel) if name.startswith("pawand/")}
    assert packaged == sources | {"pawand/py.typed"}


def test_the_wheel_holds_the_command_and_the_licence(wheel: Path) -> None:
    scripts = [name for name in names(wheel) if name.endswith(".data/scripts/pawand")]
    assert len(scripts) == 1
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(scripts[0]).startswith(b"#!python")
    assert [name for name in names(wheel) if ".dist-info/" in name and name.endswith("/LICENSE")]


def test_the_command_in_the_repository_is_executable() -> None:
    assert os.access(ROOT / "bin/pawand", os.X_OK)


# --- systemd --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_valid(unit: Path, tmp_path: Path) -> None:
    result = analyze("verify", installed(unit, tmp_path))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_service_is_little_exposed(tmp_path: Path) -> None:
    unit = installed(ROOT / "systemd/pawand.service", tmp_path)
    result = analyze("security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert found, result.stdout + result.stderr
    assert float(found[1]) <= MOST_EXPOSURE


def test_the_service_leaves_the_sandbox_what_it_needs() -> None:
    settings = dict(
        line.split("=", 1)
        for line in (ROOT / "systemd/pawand.service").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert not settings.keys() & set(FORBIDDEN)
    assert "@mount" in settings["SystemCallFilter"]
    assert "AF_NETLINK" in settings["RestrictAddressFamilies"]
    assert settings["WorkingDirectory"] == settings["ReadWritePaths"]


def installed(unit: Path, folder: Path) -> Path:
    """A copy whose command exists on this machine."""
    copy = folder / unit.name
    copy.write_text(unit.read_text().replace("/usr/local/bin/pawand", str(Path(sys.executable).parent / "pawand")))
    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
