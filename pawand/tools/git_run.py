"""How the git tools start git: in the sandbox, on the workspace's own repository, with nothing that a model writes
taken for an option or a pattern, and no network, pager, editor or colour."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from pawand.errors import ToolError
from pawand.tools.base import ToolContext
from pawand.tools.output import HeadTail
from pawand.tools.pipes import drain

TIMEOUT_SECS = 60
_LITERAL = ":(literal)"  # for each path: --literal-pathspecs would reach the repository's hooks and filters too
_SETTINGS = (
    "core.fsmonitor=false",
    "core.quotePath=false",
    "core.pager=cat",
    "color.ui=false",
    "color.diff=false",
    "color.status=false",
    "blame.coloring=none",
    "advice.statusHints=false",
    "advice.detachedHead=false",
    "advice.addIgnoredFile=false",
    "submodule.recurse=false",
    "i18n.commitEncoding=UTF-8",
    "i18n.logOutputEncoding=UTF-8",
    "gc.auto=0",
    "maintenance.auto=false",
    "safe.bareRepository=explicit",
    "user.useConfigOnly=true",  # no address made up from the machine's name
)
_NO_REPOSITORY = (
    "the workspace is no git repository (one in a folder above it lies outside the workspace): "
    "make one with `git init` in bash, or ask the user to start pawand in the repository's top folder."
)
_ELSEWHERE = (
    "the repository of this worktree or submodule lies outside the workspace, where the sandbox does not show it: "
    "ask the user to start pawand in the main checkout."
)
_FOREIGN = (
    "the repository belongs to another user, so git refuses it, and settings in the user's home do not count here: "
    "ask the user to make the folder belong to the one that pawand runs as."
)
_BARE = "the workspace is a bare repository: these tools need a checkout. Ask the user to start pawand in one."
_NOBODY = (
    "git does not know whose commit this is: ask the user to set `git config --global user.name` and "
    "`git config --global user.email`, and to start pawand again."
)
_ADVICE = (
    ("fatal: not a git repository (", _NO_REPOSITORY),
    ("fatal: not a git repository: ", _ELSEWHERE),
    ("fatal: detected dubious ownership", _FOREIGN),
    ("fatal: cannot use bare repository", _BARE),
    ("fatal: this operation must be run in a work tree", _BARE),
    ("*** Please tell me who you are.", _NOBODY),
)


class Answer(Struct, frozen=True):
    """What git wrote; `missing` bytes of its output were too many to keep."""

    stdout: str
    stderr: str
    missing: int


async def git(context: ToolContext, *arguments: str, changes: bool = False) -> Answer:
    """Run git and wait for its end. Raises ToolError with git's own words where it fails.

    Without `changes` it takes no lock and reaches no other repository.
    """
    stdout, stderr = HeadTail(), HeadTail()
    async with context.sandbox.start(_command(context, arguments, changes), session_id=context.session_id) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        readers = asyncio.gather(
            drain(process.stdout, context.redactor.stream(), stdout),
            drain(process.stderr, context.redactor.stream(), stderr),
        )
        try:
            async with asyncio.timeout(TIMEOUT_SECS):
                await readers
                code = await process.wait()
        except TimeoutError as error:
            raise ToolError(
                f"git {arguments[0]} took more than {TIMEOUT_SECS} s and was stopped: "
                "run it with bash and a longer timeout_secs"
            ) from error
    answer = Answer(stdout.text(), stderr.text(), stdout.missing)
    if code:
        raise _failure(arguments[0], code, answer)
    return answer


async def pathspecs(paths: list[str], context: ToolContext) -> list[str]:
    """Paths of the workspace as git takes them literally, whether they exist or not."""
    return [_LITERAL + await plain_path(path, context) for path in paths]


async def plain_path(path: str, context: ToolContext) -> str:
    """A path of the workspace for a command that knows no patterns; to be given after `--`."""
    relative = await asyncio.to_thread(context.workspace.relative, path)
    parts = relative.split("/")
    if ".." in parts:
        raise ToolError(f"{path}: `..` may not be used, write the path from the workspace's top")
    if ".git" in (part.lower() for part in parts):
        raise ToolError(f"{path} is one of git's own files, which are in no commit")
    return relative


def revision(value: str, name: str) -> str:
    """A branch, tag, commit or range as the argument `name` gave it: git itself says whether there is one."""
    if value.startswith("-"):
        raise ToolError(f"{name} may not begin with a dash: give a branch, tag or commit")
    return value


def _command(context: ToolContext, arguments: tuple[str, ...], changes: bool) -> list[str]:
    """LANGUAGE, because failures are told apart by git's English words."""
    above = context.workspace.root.parent
    command = ["env", "LANGUAGE=C", "GIT_NO_LAZY_FETCH=1", f"GIT_CEILING_DIRECTORIES={above}"]
    # Not for changes: a hook of the repository may fetch what it needs, if the sandbox has a network.
    command += ["git"] if changes else ["GIT_ALLOW_PROTOCOL=none", "git", "--no-optional-locks"]
    return [*command, "--no-pager", *(word for setting in _SETTINGS for word in ("-c", setting)), *arguments]


def _failure(subcommand: str, code: int, answer: Answer) -> ToolError:
    if code == 127 and not answer.stdout:  # the answer of env
        return ToolError("git is not installed, or not where the sandbox shows it: apt install git")
    said = "\n".join(text for text in (answer.stderr.strip(), answer.stdout.strip()) if text)
    said = said.replace(_LITERAL, "") or f"git {subcommand} failed with exit status {code}"
    lines = answer.stderr.split("\n")
    advice = next((advice for words, advice in _ADVICE if any(line.startswith(words) for line in lines)), "")
    return ToolError(f"{advice} Git says:\n{said}" if advice else said)
