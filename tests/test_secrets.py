"""Where keys come from, and which of their places wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from pawand.config import load_secrets
from pawand.errors import ConfigError

NAME = "OPENAI_API_KEY"


class Places:
    """The three places of a key, all empty at first."""

    def __init__(self, root: Path) -> None:
        self.dotenv = root / "xdg" / "pawan" / ".env"
        self.credential = root / "credentials" / NAME
        for file in (self.dotenv, self.credential):
            file.parent.mkdir(parents=True)
        self.env = {"XDG_CONFIG_HOME": str(root / "xdg"), "CREDENTIALS_DIRECTORY": str(root / "credentials")}
        self.warnings: list[str] = []

    def write_dotenv(self, content: bytes, mode: int = 0o600) -> None:
        self.dotenv.write_bytes(content)
        self.dotenv.chmod(mode)

    def load(self) -> dict[str, str]:
        return load_secrets([NAME, "NVIDIA_API_KEY"], self.env, self.warnings)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_environment_beats_credential_beats_dotenv(places: Places) -> None:
    assert places.load() == {}
    places.write_dotenv(b"OPENAI_API_KEY=from-file\nOTHER=x\n")
    assert places.load() == {NAME: "from-file"}
    places.credential.write_text(" from-systemd\n")
    assert places.load() == {NAME: "from-systemd"}
    places.env[NAME] = "from-env "
    assert places.load() == {NAME: "from-env"}
    assert places.warnings == []


def test_a_blank_value_hides_nothing(places: Places) -> None:
    places.write_dotenv(b"OPENAI_API_KEY=from-file\n")
    places.credential.write_text("\n")
    places.env[NAME] = " "
    assert places.load() == {NAME: "from-file"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("OPENAI_API_KEY=abc", "abc"),
        ("  export   OPENAI_API_KEY = abc  ", "abc"),
        ('OPENAI_API_KEY="a b"', "a b"),
        ("export OPENAI_API_KEY='a\"b'", 'a"b'),
        ("OPENAI_API_KEY=a=b#c", "a=b#c"),
        ("OPENAI_API_KEY=abc # of work", "abc"),
        ("OPENAI_API_KEY='a # b'  # of work", "a # b"),
        ("OPENAI_API_KEY=old\r\nOPENAI_API_KEY=new\r\n", "new"),
        ("#OPENAI_API_KEY=abc", None),
        ("OPENAI_API_KEY=", None),
        ("OPENAI_API_KEY= # none yet", None),
        ("OPENAI_API_KEY='' ", None),
        ("OPENAI_API_KEY\nMY_OPENAI_API_KEY=abc", None),
    ],
)
def test_lines_of_a_dotenv(places: Places, text: str, value: str | None) -> None:
    places.write_dotenv(text.encode())
    assert places.load().get(NAME) == value


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_dotenv_that_others_may_read_is_ignored_with_a_warning(places: Places, mode: int) -> None:
    places.write_dotenv(b"OPENAI_API_KEY=abc", mode)
    assert places.load() == {}
    assert places.warnings == [f"{places.dotenv} is readable by others and is ignored; run: chmod 600 {places.dotenv}"]


def test_a_dotenv_that_cannot_be_read_is_a_warning(places: Places) -> None:
    places.write_dotenv(b"OPENAI_API_KEY=\xff")
    assert places.load() == {}
    places.dotenv.unlink()
    places.dotenv.mkdir(0o700)
    assert places.load() == {}
    assert places.warnings == [
        f"{places.dotenv}: not UTF-8 text (byte 15)",
        f"{places.dotenv}: cannot be read: it is not a file",
    ]


def test_a_credential_that_cannot_be_read_is_an_error(places: Places) -> None:
    places.credential.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY: not UTF-8 text"):
        places.load()
