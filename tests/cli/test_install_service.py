"""`pawand install-service`: what it writes, what it leaves alone, and that systemd reads it as it was meant."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pawand.cli import units
from pawand.errors import ConfigError
from tests import harness

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts in a namespace need root")
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
ODD = "we ird%h'a\"b $HOME;{}#é"


def run(
    *arguments: str | Path, cwd: Path, prefix: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, str(harness.COMMAND), "install-service", *map(str, arguments)]
    environ = harness.environment(Path(os.environ["HOME"]), cwd / "state", **env)
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)


def user_units() -> Path:
    return Path(os.environ["HOME"]) / ".config/systemd/user"


def setting(unit: Path | str, key: str) -> str:
    text = unit.read_text() if isinstance(unit, Path) else unit
    [value] = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    return str(value)


# --- a service of the user ------------------------------------------------------------------------


def test_a_users_service_is_written_for_this_folder(tmp_path: Path) -> None:
    ended = run("--user", "--socket", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    service, socket = user_units() / "pawand.service", user_units() / "pawand.socket"
    assert setting(service, "ExecStart") == f"{harness.COMMAND} serve"
    assert setting(service, "WorkingDirectory") == str(tmp_path)
    assert {file.name for file in user_units().iterdir()} == {service.name, socket.name}
    assert {file.stat().st_mode & 0o777 for file in (service, socket)} == {0o644}
    assert ended.stdout.splitlines()[-3:] == [
        "  systemctl --user daemon-reload",
        "  systemctl --user enable --now pawand.socket pawand.service",
        "  loginctl enable-linger",
    ]


def test_a_state_folder_that_the_service_does_not_know_is_told_of(tmp_path: Path) -> None:
    assert "note: PAWAND_STATE_DIR is set in this shell and not in the service" in run("--user", cwd=tmp_path).stdout
    assert "PAWAND_STATE_DIR" not in run("--user", cwd=tmp_path, PAWAND_STATE_DIR="").stdout


def test_the_folder_of_the_units_follows_xdg(tmp_path: Path) -> None:
    assert run("--user", cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "x")).returncode == 0
    assert (tmp_path / "x/systemd/user/pawand.service").exists()
    assert not user_units().exists()


def test_a_workspace_that_is_missing_is_named_in_the_commands(tmp_path: Path) -> None:
    ended = run("--user", "--workspace", "~/my work", "--json", cwd=tmp_path)
    workspace = Path(os.environ["HOME"]) / "my work"
    assert json.loads(ended.stdout)["next"][0] == f"mkdir -p '{workspace}'"
    assert setting(user_units() / "pawand.service", "WorkingDirectory") == str(workspace)


# --- what is there already ------------------------------------------------------------------------


def test_a_unit_that_differs_is_shown_and_kept_until_forced(tmp_path: Path) -> None:
    assert run("--user", cwd=tmp_path).returncode == 0
    service = user_units() / "pawand.service"
    changed = service.read_text().replace("WatchdogSec=60", "WatchdogSec=5")
    service.write_text(changed)
    drop_in = user_units() / "pawand.service.d/override.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=7\n")
    ended = run("--user", "--socket", cwd=tmp_path)
    assert ended.returncode == 1
    assert "\n-WatchdogSec=5\n+WatchdogSec=60\n" in ended.stdout
    assert "--force" in ended.stderr
    assert service.read_text() == changed
    assert not (user_units() / "pawand.socket").exists()  # all or nothing
    forced = run("--user", "--socket", "--force", cwd=tmp_path)
    assert forced.returncode == 0
    assert setting(service, "WatchdogSec") == "60"
    both = "pawand.socket pawand.service"
    assert f"  systemctl --user stop {both}\n  systemctl --user enable --now {both}\n" in forced.stdout
    service.write_text(changed)
    alone = run("--user", "--force", cwd=tmp_path)
    assert "  systemctl --user enable --now pawand\n  systemctl --user restart pawand\n" in alone.stdout
    assert drop_in.read_text() == "[Service]\nWatchdogSec=7\n"


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    assert run("--user", cwd=tmp_path).returncode == 0
    before = (user_units() / "pawand.service").stat()
    ended = run("--user", cwd=tmp_path)
    assert (ended.returncode, ended.stdout.split()[0]) == (0, "unchanged")
    after = (user_units() / "pawand.service").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_masked_unit_is_not_written_through(tmp_path: Path) -> None:
    user_units().mkdir(parents=True)
    target = tmp_path / "precious"
    target.write_text("mine")
    service = user_units() / "pawand.service"
    service.symlink_to(target)
    ended = run("--user", cwd=tmp_path)
    assert ended.returncode == 1
    assert f"-> {target}" in ended.stdout
    assert run("--user", "--force", cwd=tmp_path).returncode == 0
    assert target.read_text() == "mine"
    assert not service.is_symlink()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    ended = run("--user", "--dry-run", "--json", cwd=tmp_path)
    answer: dict[str, Any] = json.loads(ended.stdout)
    [file] = answer["files"]
    assert (ended.returncode, answer["written"], file["state"]) == (0, False, "new")
    assert setting(file["text"], "WorkingDirectory") == str(tmp_path)
    assert not user_units().exists()


# --- a service of the machine ---------------------------------------------------------------------


@pytest.fixture
def system_units(tmp_path: Path) -> Path:
    folder = tmp_path / "etc-systemd-system"
    folder.mkdir()
    return folder


def as_root_elsewhere(folder: Path) -> tuple[str, ...]:
    """Runs a command with `folder` for /etc/systemd/system."""
    script = f'mount --bind "{folder}" /etc/systemd/system && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


def lies_in_a_home(path: Path) -> bool:
    """In one that ProtectHome= covers."""
    return any(path.resolve().is_relative_to(home) for home in (Path("/home"), Path("~root").expanduser()))


@needs_root
def test_a_service_of_the_machine_is_written_with_its_workspace(tmp_path: Path, system_units: Path) -> None:
    if not Path("/etc/systemd/system").is_dir():
        pytest.skip("there is no /etc/systemd/system")
    ended = run("--workspace", "/srv/no such/place", cwd=tmp_path, prefix=as_root_elsewhere(system_units))
    assert (ended.returncode, ended.stderr) == (0, "")
    service = system_units / "pawand.service"
    assert [setting(service, key) for key in ("User", "WorkingDirectory", "ReadWritePaths", "ProtectHome")] == [
        "pawand",
        "/srv/no such/place",
        '"/srv/no such/place"',
        "read-only" if lies_in_a_home(Path(sys.executable)) else "yes",
    ]
    assert [path.name for path in system_units.iterdir()] == ["pawand.service"]
    commands = [line.strip() for line in ended.stdout.partition("Now run:")[2].splitlines() if line]
    assert [command for command in commands if not command.startswith("useradd")] == [
        "install -d -o pawand -g pawand '/srv/no such/place'",
        "systemctl daemon-reload",
        "systemctl enable --now pawand",
    ]


@needs_root
def test_only_root_writes_one(tmp_path: Path) -> None:
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    ended = run("--workspace", "/srv/x", cwd=Path("/"), prefix=nobody)
    if "Permission denied" in ended.stderr:
        pytest.skip("another user cannot run the command from here")
    assert ended.returncode == 2
    assert "use sudo, or --user" in ended.stderr
    assert run("--dry-run", "--workspace", "/srv/x", cwd=Path("/"), prefix=nobody).returncode == 0


def test_places_below_home_are_shown_to_the_service_and_that_is_said() -> None:
    template = units.template(units.SERVICE, user=False)
    text, [note] = units.service(template, Path("/usr/bin/pawand"), Path("/home/ada/work"), user=False)
    assert setting(text, "ProtectHome") == "read-only"
    assert "/home/ada/work" in note


@pytest.mark.parametrize(
    ("program", "workspace", "words"),
    [
        ("/usr/bin/pawand", "/tmp/work", "/tmp/work"),
        ("/var/tmp/bin/pawand", "/srv/x", "/var/tmp/bin/pawand"),
        ("/usr/bin/pawand", "/srv/two\nlines", "rename"),
        ("/usr/bin/pawand", "/srv/back\\slash", "rename"),
        ("/usr/bin/pawand", "/srv/ends ", "rename"),
        ("/usr/bin/pawand", "/srv/\udcff", "rename"),
        ("/opt/ada's/pawand", "/srv/x", "/opt/ada's/pawand"),
    ],
)
def test_paths_that_cannot_work_are_refused(program: str, workspace: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        units.service(units.template(units.SERVICE, user=False), Path(program), Path(workspace), user=False)
    assert words in caught.value.message


@pytest.mark.parametrize("workspace", ["/", "/etc", "~"])
def test_a_workspace_that_the_daemon_would_refuse_is_refused(tmp_path: Path, workspace: str) -> None:
    ended = run("--user", "--workspace", workspace, cwd=tmp_path)
    assert ended.returncode == 2
    assert not user_units().exists()


# --- as systemd reads it --------------------------------------------------------------------------


def verify(unit: Path, *options: str, **env: str) -> str:
    environ = {**os.environ, "XDG_RUNTIME_DIR": os.environ["HOME"], **env}
    command = ["systemd-analyze", "verify", *options, str(unit)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    return ended.stdout + ended.stderr


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    workspace = tmp_path / ODD
    workspace.mkdir()
    assert run("--user", "--socket", cwd=workspace).returncode == 0
    assert verify(user_units() / "pawand.service", "--user") == ""
    assert verify(user_units() / "pawand.socket", "--user") == ""


@needs_systemd
def test_odd_paths_mean_to_systemd_what_they_are(tmp_path: Path) -> None:
    program = tmp_path / "pr og%h $HOME $$x;{}#é/pawand"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    # The program lies in /tmp, which a service of the machine may not: so its line comes from a user's.
    text, _ = units.service(units.template(units.SERVICE, user=True), program, Path("/srv") / ODD, user=True)
    system, _ = units.service(
        units.template(units.SERVICE, user=False), Path("/usr/bin/pawand"), Path("/srv") / ODD, user=False
    )
    unit = tmp_path / "pawand.service"
    unit.write_text(system.replace("/usr/bin/pawand serve", setting(text, "ExecStart")))
    assert verify(unit) == ""
    seen = verify(unit, SYSTEMD_LOG_LEVEL="debug")
    assert f"WorkingDirectory: /srv/{ODD}\n" in seen
    assert f"ReadWritePaths: /srv/{ODD}\n" in seen
