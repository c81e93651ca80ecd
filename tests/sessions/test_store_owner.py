"""A store belongs to one daemon, which finds it clean."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pawand.errors import StartError
from pawand.sessions.store import SessionStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    found = SessionStore(tmp_path / "sessions")
    found.open()
    yield found
    found.close()


def test_a_second_owner_is_refused_with_the_name_of_the_first(store: SessionStore) -> None:
    other = SessionStore(store.folder)
    with pytest.raises(StartError) as caught:
        other.open()
    assert caught.value.message.startswith(
        f"the session store {store.folder} belongs to a running pawand (pid {os.getpid()}); stop it, or set "
    )
    store.close()
    other.open()
    other.close()


def test_children_do_not_inherit_the_lock(store: SessionStore) -> None:
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        try:
            store.close()
            SessionStore(store.folder).open()
        finally:
            child.kill()


def test_leftovers_of_a_crash_are_swept_at_the_start(store: SessionStore) -> None:
    store.close()
    (store.folder / ".tmp-abc").write_text("{")
    (store.folder / "a.json").write_text("{")
    (store.folder / ".tmp-folder").mkdir()
    store.open()
    assert sorted(file.name for file in store.folder.iterdir()) == [".lock", ".tmp-folder", "a.json"]


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"the session store .*/file/x cannot be used: Not a directory"):
        SessionStore(tmp_path / "file" / "x").open()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".lock").symlink_to(tmp_path / "file")
    with pytest.raises(StartError, match="cannot be used: Too many levels of symbolic links"):
        SessionStore(tmp_path / "s").open()
