"""How `pawand config set` changes a file: checked as the daemon would, replaced as a whole, by one at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pawand import paths
from pawand.cli.toml_edit import changed, dotted
from pawand.cli.toml_edit import put as put_into
from pawand.client import StateError, read_state_file
from pawand.errors import ConfigError, PawandError
from pawand.sessions import disk

if TYPE_CHECKING:
    from pawand.config import Layer, Settings


def put(parts: Sequence[str], toml: str, file: Path | None, listed: Sequence[Path]) -> tuple[Path, list[str]]:
    """Put a value into `file`, or the user's own; return the file, and what keeps the value from counting at once.

    `listed` are the files that pawand reads here. Raises ConfigError, with nothing written, or PawandError.
    """
    from pawand import config

    place = paths.expand(file) if file else paths.user_config_dir() / paths.CONFIG_NAME
    place = next((other for other in reversed(listed) if _same(other, place)), place)
    flags = {} if place in listed else {"config": place}
    try:
        target = place.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{place}: cannot be read: {error}") from error
    with _alone(target.parent):
        text = _read(target)
        values = config.toml_of(place, text)
        _check_tables(place, values, parts)
        try:
            draft = config.file_layer(place, changed(values, parts, toml))
            config.check(draft)
            after = put_into(text, parts, toml)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{place}: {error}; change `{dotted(parts)}` in an editor") from error
        settings, notes = _tried(draft, flags)
        if after != text:
            _write(target, after.encode())
        held = [path for path, _ in config.leaves_of(draft.values) if path[: len(parts)] == tuple(parts)]
        if any(config.is_secret(".".join(path)) for path in held) and config.is_open_to_others(target):
            notes.append(f"others can read {target}, which holds a secret now: chmod 600 {target}")
    if settings is not None:
        notes += _hindrances(parts, place, settings)
    return place, notes + ([f"pawand reads this file only where it is told to: --config {place}"] if flags else [])


def _same(file: Path, other: Path) -> bool:
    return file.absolute() == other.absolute() or (file.exists() and other.exists() and file.samefile(other))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else sets anything in the files of `folder` meanwhile."""
    try:
        descriptor = os.open(paths.private_dir(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PawandError(f"{folder} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(target: Path) -> str:
    from pawand.config import MAX_FILE_BYTES

    try:
        data = disk.read(target)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{target}: larger than {MAX_FILE_BYTES >> 20} MiB, so it is no file of settings")
        return data.decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ConfigError(f"{target}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{target}: cannot be read: {error.strerror}") from error


def _check_tables(place: Path, values: dict[str, Any], parts: Sequence[str]) -> None:
    """A table that is there is not replaced as a whole: what it holds would be lost, and its comments."""
    held: Any = values
    for name in parts:
        held = held.get(name) if isinstance(held, dict) else None
    if isinstance(held, dict) and held:
        example = dotted([*parts, next(iter(held))])
        raise ConfigError(f"{place}: `{dotted(parts)}` is there already; set its values one by one, like {example}")


def _tried(draft: Layer, flags: dict[str, Any]) -> tuple[Settings | None, list[str]]:
    """The settings with the draft in its place. Raises ConfigError where it is the draft that makes them wrong.

    Where they were wrong before, there are none, but a note that says so.
    """
    from pawand import config

    try:
        return config.load(Path.cwd(), flags, draft=draft), []
    except ConfigError as error:
        try:
            config.load(Path.cwd(), flags if Path(draft.name).exists() else {})
        except ConfigError:
            return None, [f"pawand does not start with these settings: {error.message}"]
        raise


def _write(target: Path, data: bytes) -> None:
    try:
        disk.replace(target, data, target.stat() if target.exists() else None)
    except OSError as error:
        raise PawandError(f"{target} cannot be written: {error.strerror}") from error


def _hindrances(parts: Sequence[str], place: Path, settings: Settings) -> list[str]:
    """What keeps a new value from counting, or from counting at once."""
    from pawand.config import ENVIRONMENT

    begins = [f"{place}: `{'.'.join(parts[: number + 1])}` " for number in range(len(parts))]
    notes = [text for text in settings.warnings if text.startswith(tuple(begins))]
    key = ".".join(parts)
    counting = {source for name, source in settings.sources.items() if name == key or name.startswith(f"{key}.")}
    for source in sorted(counting - {str(place)}):
        notes.append(f"{source} in the environment wins" if source in ENVIRONMENT else f"{source} wins")
    if key == "base_url" and not counting:
        notes.append("`base_url` does not count: a later file or the environment sets another provider")
    try:
        running = read_state_file(paths.state_dir())
    except StateError:  # of another user's daemon, which does not read this file
        running = None
    if running is not None:
        from pawand.daemon.assembly import is_fixed

        pid = running["pid"]
        late, soon = f"at its next start (pid {pid} runs now)", f"after: kill -HUP {pid}"
        notes.append(f"the running pawand takes it {late if is_fixed(key) else soon}")
    return notes
