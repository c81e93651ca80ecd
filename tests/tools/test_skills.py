"""Skills: which are found, what the model is told of them, and what `read_skill` reads and refuses."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawand.redact import Redactor
from pawand.tools.base import Outcome, Registry, ToolContext
from pawand.tools.skills import Skill, Skills, prompt_section, tool
from pawand.tools.workspace import Workspace
from pawand.wire import ToolCall
from tests import harness
from tests.tools.conftest import SECRET, Bench

GOOD = "---\nname: release\ndescription: How to make a release.\nallowed-tools: [bash]\n---\n\n# Release\n\nTag it.\n"


def matter(name: str, description: str = "d") -> str:
    return f"---\nname: {name}\ndescription: {description}\n---\nbody of {name}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "skills"
    path.mkdir()
    return path


def put(folder: Path, name: str, text: str | bytes, file: str = "SKILL.md") -> Path:
    path = folder / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def found(folder: Path) -> list[tuple[str, str, str]]:
    return [(skill.name, skill.description, skill.dir) for skill in Skills(folder).listed()]


# --- finding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "description"),
    [
        (GOOD, "release", "How to make a release."),
        (GOOD.replace("\n", "\r\n"), "release", "How to make a release."),
        ("\ufeff" + GOOD, "release", "How to make a release."),
        ("---\nname: n\n---", "n", ""),
        ("---  \nname: n\ndescription:\n--- \n", "n", ""),
        ("---\nname: 'a: b'\ndescription: >\n  one\n  two\n\n  three\n---\n", "a: b", "one two three"),
        ("---\nname: 2024\ndescription: yes\n---\n", "2024", "yes"),
        ('---\nname: n\ndescription: "a\\n- forged: line"\n---\n', "n", "a - forged: line"),
        ("---\nname: näme 🦀\ndescription: d\n---\n", "näme 🦀", "d"),
        ("---\nname: n\ndescription: [a, b]\n---\n", "n", ""),
        ("---\nname: n\ndescription: a\n---\nname: other\n---\n", "n", "a"),
        ("---\nname: n\ndescription: " + "x" * 3000 + "\n---\n", "n", "x" * 500),
        ("---\nname: n\n---\n" + "body\n" * 100_000, "n", ""),
        ('---\nname: "a\\ud800"\n---\n', "a?", ""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_skill_is_found(folder: Path, text: str, name: str, description: str) -> None:
    put(folder, "one", text)
    assert found(folder) == [(name, description, "one")]


BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))
DAMAGED = {
    "empty": "",
    "no front matter": "# Release\n",
    "not at the start": "\n" + GOOD,
    "not closed": "---\nname: n\n",
    "closed too late": "---\nname: n\ndescription: " + "x" * 9000 + "\n---\n",
    "no name": "---\ndescription: d\n---\n",
    "empty name": "---\nname: ' '\n---\n",
    "name a list": "---\nname: [a]\n---\n",
    "name a table": "---\nname: {a: b}\n---\n",
    "name too long": matter("x" * 101),
    "name with an escape": '---\nname: "a\\e[31m"\n---\n',
    "a list": "---\n- name: n\n---\n",
    "a text": "---\nname\n---\n",
    "nothing": "---\n---\n",
    "tabs": "---\nname: n\n\tdescription: d\n---\n",
    "colon": "---\nname: n: m\n---\n",
    "two documents": "---\nname: n\n--- x\nname: m\n---\n",
    "unknown alias": "---\nname: *a\n---\n",
    "itself": "---\nname: n\nx: &x [*x]\n---\n",
    "a list as key": "---\nname: n\n? [a]\n: b\n---\n",
    "deep": "---\nname: n\nx: " + "[" * 8000 + "\n---\n",
    "deep blocks": "---\nname: n\nx:\n " + "- " * 4000 + "\n---\n",
    "no character": '---\nname: "\\UFFFFFFFF"\n---\n',
    "NUL": "---\nname: n\ndescription: \0\n---\n",
    "binary": os.urandom(100) + bytes(range(256)) * 50,
    "UTF-16": GOOD.encode("utf-16"),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_skill_is_passed_over(folder: Path, text: str | bytes) -> None:
    put(folder, "a", text)
    put(folder, "b", GOOD)
    started = time.monotonic()
    assert found(folder) == [("release", "How to make a release.", "b")]
    assert time.monotonic() - started < 0.5


HARMLESS = {
    "merges that multiply": BOMB,
    "a tag that runs code": "x: !!python/object/apply:os.system ['touch RAN']\n",
    "a date that is none": "x: 2020-99-99\n",
    "a number of many digits": f"x: {'9' * 7000}\n",
    "wrong binary": "x: !!binary '???'\n",
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_other_keys_do_no_harm(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    put(folder, "a", f"---\nname: n\n{text}---\n")
    started = time.monotonic()
    assert found(folder) == [("n", "", "a")]
    assert time.monotonic() - started < 2
    assert os.listdir(folder) == ["a"]


def test_skills_are_ordered_by_name_and_the_first_of_a_name_counts(folder: Path) -> None:
    for place, name in [("a", "zebra"), ("b", "twice"), ("c", "twice"), ("d", "Ant"), ("e", "bee")]:
        put(folder, place, matter(name))
    assert [(name, place) for name, _, place in found(folder)] == [
        ("Ant", "d"),
        ("bee", "e"),
        ("twice", "b"),
        ("zebra", "a"),
    ]


def test_there_are_at_most_a_hundred(folder: Path) -> None:
    for number in range(120):
        put(folder, f"{number:03}", matter(f"skill {number:03}"))
    assert [name for name, _, _ in found(folder)] == [f"skill {number:03}" for number in range(100)]


def test_a_changed_skill_is_seen(folder: Path) -> None:
    skills = Skills(folder)
    assert skills.listed() == []
    file = put(folder, "a", matter("one"))
    assert [skill.name for skill in skills.listed()] == ["one"]
    file.write_text(matter("two"))
    assert [skill.name for skill in skills.listed()] == ["two"]
    file.unlink()
    assert skills.listed() == []


def test_the_skills_of_a_folder_are_not_those_of_the_workspace(folder: Path, root: Path, workspace: Workspace) -> None:
    put(root, ".", matter("mine"))
    put(folder, "a", matter("yours"))
    skills = Skills(folder)
    assert [skill.name for skill in skills.listed()] == ["yours"]
    assert [skill.name for skill in skills.of_workspace(workspace)] == ["mine"]


def test_no_folder_is_no_skills(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert [Skills(place).listed() for place in (None, tmp_path / "none", tmp_path / "file")] == [[], [], []]


def test_nothing_leads_out_of_the_folder(folder: Path, outside: Path) -> None:
    put(outside, "skill", matter("stranger"))
    (folder / "linked").symlink_to(outside / "skill")
    (folder / "inner").mkdir()
    (folder / "inner" / "SKILL.md").symlink_to(outside / "skill" / "SKILL.md")
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / "SKILL.md")
    (folder / "folder" / "SKILL.md").mkdir(parents=True)
    put(folder, "good", GOOD)
    put(folder, "line\nbreak", matter("broken"))
    (folder / "own").symlink_to("good")
    assert found(folder) == [("release", "How to make a release.", "good")]


def test_skills_of_the_workspace(root: Path, workspace: Workspace, outside: Path) -> None:
    skills = Skills(None)
    assert skills.of_workspace(workspace) == []
    put(outside, "skill", matter("stranger"))
    put(root, ".", matter("whole", "All of it."))
    put(root, ".pawan/skills/b", matter("part"))
    put(root, ".pawan/skills/c", matter("whole", "another"))
    put(root, ".claude/skills/d", matter("not read"))
    (root / ".pawan/skills/linked").symlink_to(outside / "skill")
    assert skills.of_workspace(workspace) == [
        Skill(name="part", description="d", dir=".pawan/skills/b"),
        Skill(name="whole", description="All of it.", dir="."),
    ]


# --- what the model is told ---------------------------------------------------------------------------


def test_the_section_says_how_each_is_read() -> None:
    section = prompt_section(
        [Skill(name="release", description="How to release.", dir="r")],
        [Skill(name="a", description="A.", dir="."), Skill(name="b", description="B.", dir=".pawan/skills/b")],
    )
    assert section.splitlines()[0] == "## Skills"
    assert section.splitlines()[3:] == [
        "- release: How to release. (read_skill)",
        "- a: A. (read_file SKILL.md)",
        "- b: B. (read_file .pawan/skills/b/SKILL.md)",
    ]


def test_without_skills_there_is_no_section() -> None:
    assert prompt_section([], []) == ""


# --- reading ------------------------------------------------------------------------------------------


class Reader:
    """Calls `read_skill` as the agent does."""

    def __init__(self, folder: Path, context: ToolContext) -> None:
        self._registry = Registry([tool(Skills(folder))], Redactor([]))
        self._context = context

    def call(self, **arguments: Any) -> Outcome:
        return asyncio.run(self._call(ToolCall(id="c", name="read_skill", arguments=arguments)))

    async def _call(self, call: ToolCall) -> Outcome:
        assert self._registry.is_read_only("read_skill")
        with harness.no_blocking():
            return await self._registry.run(call, self._registry.parse(call), self._context, lambda _: None)

    def ok(self, **arguments: Any) -> dict[str, Any]:
        outcome = self.call(**arguments)
        assert outcome.success, outcome.content
        assert isinstance(outcome.content, dict)
        return outcome.content

    def refused(self, **arguments: Any) -> str:
        outcome = self.call(**arguments)
        assert not outcome.success, outcome.content
        error = outcome.content["error"]
        assert isinstance(error, str)
        assert "internal error" not in error
        return error


@pytest.fixture
def reader(folder: Path, bench: Bench) -> Reader:
    put(folder, "r", GOOD)
    return Reader(folder, bench.context)


def test_a_skill_is_read_without_its_front_matter(reader: Reader) -> None:
    assert reader.ok(name="release") == {"name": "release", "file": "SKILL.md", "content": "# Release\n\nTag it."}


def test_the_other_files_are_named_and_can_be_read(reader: Reader, folder: Path, outside: Path) -> None:
    for file in ("z.md", "a.py", "docs/deep/er/x.md", "docs/deep/er/est/too.md", ".hidden", ".git/config"):
        put(folder, "r", f"text of {file}\n---\n", file)
    put(folder, "r", b"a\0b", "image.png")
    (folder / "r" / "link").symlink_to(outside / "secret.txt")
    (folder / "r" / "linked").symlink_to(outside)
    assert reader.ok(name="release")["files"] == ["a.py", "image.png", "z.md", "docs/deep/er/x.md"]
    for file in ("docs/deep/er/x.md", "docs/deep/er/est/too.md", "./docs/../z.md"):
        assert reader.ok(name="release", file=file) == {
            "name": "release",
            "file": file,
            "content": f"text of {os.path.normpath(file)}\n---",
        }


def test_many_files_are_cut(reader: Reader, folder: Path) -> None:
    for number in range(130):
        put(folder, "r", "x", f"{number:03}")
    assert reader.ok(name="release")["files"] == [*(f"{number:03}" for number in range(100)), "…"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "other"}, "there is no skill other; there are: release"),
        ({"name": "r"}, "there is no skill r; there are: release"),
        ({"name": "release", "file": "none.md"}, "r/none.md does not exist"),
        ({"name": "release", "file": "folder"}, "r/folder is a folder"),
        ({"name": "release", "file": "."}, "leads out of the folder of the skill"),
        ({"name": "release", "file": "image.png"}, "r/image.png is a binary file"),
        ({"name": "release", "file": "latin.txt"}, "r/latin.txt is not UTF-8 text"),
        ({"name": "release", "file": "../r/../next/SKILL.md"}, "leads out of the folder of the skill release"),
        ({"name": "release", "file": "../r2/SKILL.md"}, "leads out of the folder of the skill release"),
        ({"name": "release", "file": "../../outside/secret.txt"}, "leads out of"),
        ({"name": "release", "file": "/etc/passwd"}, "is outside"),
        ({"name": "release", "file": "link"}, "leads out of"),
        ({"name": "release", "file": "linked/secret.txt"}, "leads out of"),
        ({"name": "release", "file": "to next"}, "leads out of the folder of the skill release"),
        ({"name": "release", "file": "pipe"}, "is not a regular file"),
        ({"name": "release", "file": "a\0b"}, "NUL"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_read_is_refused(
    reader: Reader, folder: Path, outside: Path, arguments: dict[str, Any], error: str
) -> None:
    (folder / "r" / "folder").mkdir()
    put(folder, "r", b"a\0b", "image.png")
    put(folder, "r", b"caf\xe9", "latin.txt")
    for other in ("next", "r2"):
        put(folder, other, SECRET)
    (folder / "r" / "link").symlink_to(outside / "secret.txt")
    (folder / "r" / "linked").symlink_to(outside)
    (folder / "r" / "to next").symlink_to("../next/SKILL.md")
    os.mkfifo(folder / "r" / "pipe")
    said = reader.refused(**arguments)
    assert error in said
    assert SECRET not in said


def test_a_folder_that_went_away_is_told(folder: Path, bench: Bench) -> None:
    assert "there is no skill release" in Reader(folder / "gone", bench.context).refused(name="release")


@pytest.mark.parametrize("line", ["Do step {}.", '"\\" {}', "🦀 {}", "y" * 1500 + "{}"], ids=lambda line: line[:8])
def test_a_long_skill_is_read_in_parts(reader: Reader, folder: Path, line: str) -> None:
    lines = [line.format(number) for number in range(900)]
    put(folder, "r", "---\nname: long\n---\n\n" + "\n".join(lines))
    put(folder, "r", "x", "extra.md")
    shown: list[str] = []
    while True:
        result = reader.ok(name="long", offset=len(shown))
        assert len(msgspec.json.encode(result)) <= 8000
        assert result["files"] == ["extra.md"]
        shown += result["content"].split("\n")
        if "warning" not in result:
            break
        assert result["warning"] == f"{900 - len(shown)} more lines: go on with offset={len(shown)}"
    assert shown == lines
    assert reader.ok(name="long", offset=901)["warning"] == "the file has only 900 lines"
