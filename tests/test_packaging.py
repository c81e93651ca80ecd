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
from pawand import config
from pawand.client import url_of

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "systemd").rglob("*.*"))
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
    "RestrictSUIDSGID",  # it has no openat2(2), which bubblewrap 0.12 needs
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("pawand", "bin", "systemd"):
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


def test_the_wheel_holds_the_units_as_they_are(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packaged = {
            name.partition("/share/pawand/systemd/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if "/share/pawand/systemd/" in name
        }
    assert packaged == {str(unit.relative_to(ROOT / "systemd")): unit.read_text() for unit in UNITS}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["environment", "prefix"])
def test_an_installed_wheel_can_install_its_service(wheel: Path, tmp_path: Path, scheme: str) -> None:
    """Without the sources anywhere near; the packages that it needs are those of this environment."""
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    if scheme == "environment":
        subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
        pip[0] = str(target / "bin/python")
        into: list[str] = []
    else:
        into = ["--prefix", str(target), "--ignore-installed"]
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*pip, *into], check=True, env=environ)
    [site] = target.glob("lib/python*/site-packages")
    packages = os.pathsep.join([str(site), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    ended = subprocess.run(
        [target / "bin/pawand", "install-service", "--user", "--socket", "--json"],
        cwd=target,
        env={**environ, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / ".config/systemd/user"
    # with --prefix the interpreter is this one, and so is the command beside it
    program = target / "bin/pawand" if scheme == "environment" else Path(sys.executable).parent / "pawand"
    assert settings_of(folder / "pawand.service")["ExecStart"] == f"{program} serve"
    assert (folder / "pawand.socket").read_text() == (ROOT / "systemd/user/pawand.socket").read_text()


def test_the_command_in_the_repository_is_executable() -> None:
    assert os.access(ROOT / "bin/pawand", os.X_OK)


# --- systemd --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(ROOT / "systemd")))
def test_units_are_valid(unit: Path, tmp_path: Path) -> None:
    for sibling in unit.parent.glob("*.*"):  # a socket needs its service
        installed(sibling, tmp_path)
    result = analyze("verify", *(["--user"] if unit.parent.name == "user" else []), tmp_path / unit.name)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_service_is_little_exposed(tmp_path: Path) -> None:
    unit = installed(ROOT / "systemd/pawand.service", tmp_path)
    result = analyze("security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert found, result.stdout + result.stderr
    assert float(found[1]) <= MOST_EXPOSURE


def test_the_service_leaves_the_sandbox_what_it_needs() -> None:
    settings = settings_of(ROOT / "systemd/pawand.service")
    assert not settings.keys() & set(FORBIDDEN)
    assert "\nSystemCallFilter=@system-service @mount\n" in (ROOT / "systemd/pawand.service").read_text()
    assert "AF_NETLINK" in settings["RestrictAddressFamilies"]
    assert settings["WorkingDirectory"] == settings["ReadWritePaths"]


def test_the_users_service_needs_no_namespace_and_keeps_the_state_where_commands_look() -> None:
    settings = settings_of(ROOT / "systemd/user/pawand.service")
    needs_one = ("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ReadWritePaths", "ProtectClock")
    assert not settings.keys() & {*FORBIDDEN, *needs_one, "CapabilityBoundingSet", "StateDirectory", "User"}
    assert settings["WantedBy"] == "default.target"


def test_both_services_are_watched_and_limited() -> None:
    for service in (ROOT / "systemd/pawand.service", ROOT / "systemd/user/pawand.service"):
        settings = settings_of(service)
        wanted = {"Type": "notify", "NotifyAccess": "main", "WatchdogSec": "60", "OOMPolicy": "continue"}
        assert wanted.items() <= settings.items()
        assert {"MemoryMax", "TasksMax"} <= settings.keys()


def test_the_sockets_are_those_that_the_daemon_would_bind() -> None:
    server = config.Server()
    for unit in (ROOT / "systemd/pawand.socket", ROOT / "systemd/user/pawand.socket"):
        lines = unit.read_text().splitlines()
        listens = [line.partition("=")[2] for line in lines if line.startswith("ListenStream=")]
        assert listens == [url_of(host, server.port).removeprefix("http://") for host in server.host]


def settings_of(unit: Path) -> dict[str, str]:
    lines = unit.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def installed(unit: Path, folder: Path) -> Path:
    """A copy whose command exists on this machine."""
    copy = folder / unit.name
    program = Path(sys.executable).parent / "pawand"
    copy.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={program}", unit.read_text(), flags=re.MULTILINE))
    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    environ = {**os.environ, "XDG_RUNTIME_DIR": os.environ["HOME"]}  # --user wants one
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, env=environ)
