"""`git_status`, `git_diff`, `git_add`, `git_commit`, `git_log`, `git_blame`, `git_branch`, `git_checkout`, `git_stash`.

They go no further than a user who is careful: nothing is forced, and neither settings nor hooks are written.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools import output
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.files import Path_
from pawand.tools.git_run import git, pathspecs, plain_path, revision

MAX_COMMITS = 200
_OTHER_FIELDS = 200  # characters of a result beside its text
_PLAIN_DIFF = ("--no-ext-diff", "--no-textconv")
_NOTHING_STAGED = ("nothing to commit", "nothing added to commit", "no changes added to commit")

File = Annotated[str, Meta(description="Only this file or folder, relative to the workspace")]


class GitStatus(Struct):
    short: Annotated[bool, Meta(description="One line per file")] = False


class GitDiff(Struct):
    staged: Annotated[bool, Meta(description="What the next commit would hold, not what is still unstaged")] = False
    file: File | None = None
    base: Annotated[str, Meta(description="Compare with this branch or commit, or a range such as a..b")] | None = None
    stat: Annotated[bool, Meta(description="Only how many lines changed in which file")] = False


class GitAdd(Struct):
    files: Annotated[list[Path_], Meta(description="Files or folders to stage; deleted ones too; no globs")] = []
    all: Annotated[bool, Meta(description="Stage every change in the workspace")] = False


class GitCommit(Struct):
    message: Annotated[str, Meta(description="What the commit does, in one line")]
    body: Annotated[str, Meta(description="Why, in as many lines as it takes")] | None = None


class GitLog(Struct):
    count: Annotated[int, Meta(ge=1, le=MAX_COMMITS, description="How many commits at most")] = 10
    file: File | None = None
    oneline: Annotated[bool, Meta(description="One line per commit")] = False


class GitBlame(Struct):
    file: Path_
    lines: Annotated[str, Meta(description="First and last line, such as 10,20")] | None = None


class GitBranch(Struct):
    all: Annotated[bool, Meta(description="The branches of remotes too, as they were at the last fetch")] = False


class GitCheckout(Struct):
    target: Annotated[str, Meta(min_length=1, description="Branch, tag or commit; the new branch's name with create")]
    create: Annotated[bool, Meta(description="Make a new branch from the current commit and switch to it")] = False
    files: Annotated[list[Path_], Meta(description="Do not switch: bring these files back as target has them")] = []


class GitStash(Struct):
    action: Literal["push", "pop", "list", "drop", "show"] = "push"
    message: Annotated[str, Meta(description="A name for what is pushed")] | None = None
    index: Annotated[int, Meta(ge=0, description="Which entry to pop, drop or show; 0 is the latest")] = 0


async def git_status(args: GitStatus, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{status, branch, is_clean, success}`; `branch` is null where HEAD is detached."""
    command = ("status", "--untracked-files=normal", "--ignore-submodules=dirty", "--no-column")
    brief = (await git(context, *command, "--short", "--branch")).stdout
    heading = brief.partition("\n")[0].removeprefix("## ")
    branch = heading.removeprefix("No commits yet on ").partition("...")[0]
    return {
        "status": brief if args.short else (await git(context, *command, "--long")).stdout,
        "branch": None if heading == "HEAD (no branch)" else branch,
        "is_clean": brief.count("\n") == 1,
        "success": True,
    }


async def git_diff(args: GitDiff, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{diff, truncated, has_changes, success}`."""
    command = ["diff", *_PLAIN_DIFF, "--submodule=short", "--ignore-submodules=dirty"]
    command += ["--cached"] * args.staged + ["--stat" if args.stat else "--patch"]
    if args.base:
        command += ["--end-of-options", revision(args.base, "base")]
    # Without a repository, or a path, git diff would take what it is given for files, wherever they are.
    await git(context, "rev-parse", "--git-dir")
    answer = await git(context, *command, "--", *await pathspecs([args.file or "."], context))
    diff = output.fit(answer.stdout, context.max_result_chars - _OTHER_FIELDS)
    return {
        "diff": diff,
        "truncated": answer.missing > 0 or diff != answer.stdout,
        "has_changes": bool(answer.stdout),
        "success": True,
    }


async def git_add(args: GitAdd, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, message}`."""
    if args.all == bool(args.files):
        raise ToolError("give either files, a list of paths that is not empty, or all=true")
    if args.all:
        answer = await git(context, "add", "--all", changes=True)
    else:
        answer = await git(context, "add", "--", *await pathspecs(args.files, context), changes=True)
    staged = "every change" if args.all else ", ".join(args.files)
    return {"success": True, "message": output.clean(f"staged {staged}\n{answer.stderr}".strip())}


async def git_commit(args: GitCommit, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, commit_hash, message, output}`. The repository's hooks run, and may refuse the commit."""
    message = f"{args.message}\n\n{args.body}" if args.body else args.message
    if not args.message.strip():
        raise ToolError("the message is empty: say in one line what the commit does")
    if "\0" in message:
        raise ToolError("the message holds a NUL character")
    try:
        message.encode()
    except UnicodeEncodeError as error:
        raise ToolError("the message is no valid text") from error
    try:
        answer = await git(context, "commit", "--cleanup=whitespace", f"--message={message}", changes=True)
    except ToolError as error:
        last = str(error).rpartition("\n")[2]
        if last.startswith(_NOTHING_STAGED):
            raise ToolError(f"nothing is staged: choose with git_add what to commit. Git says:\n{error}") from error
        raise
    head = await git(context, "rev-parse", "HEAD")
    return {
        "success": True,
        "commit_hash": head.stdout.strip(),
        "message": args.message,
        "output": answer.stdout + answer.stderr,
    }


async def git_log(args: GitLog, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{log, commit_count, success}`, the latest commit first."""
    most = f"--max-count={args.count}"
    only = ("--", *await _only(args.file, context))
    look = ["--oneline"] if args.oneline else ["--pretty=medium", "--date=iso-strict"]
    look += ["--decorate=short", "--no-notes", "--no-show-signature", "--no-patch", "--no-follow"]
    answer = await git(context, "log", *_PLAIN_DIFF, *look, most, *only)
    counted = await git(context, "rev-list", "--count", most, "HEAD", *only)
    return {"log": answer.stdout, "commit_count": int(counted.stdout), "success": True}


async def git_blame(args: GitBlame, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{blame, success}`."""
    place = _line_range(args.lines) if args.lines else []
    answer = await git(context, "blame", "--no-textconv", *place, "--", await plain_path(args.file, context))
    return {"blame": answer.stdout, "success": True}


async def git_branch(args: GitBranch, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{current, branches, count, success}`; those of remotes are `remotes/origin/main` and so on."""
    current = (await git(context, "branch", "--show-current")).stdout.strip("\n")
    places = ["refs/heads", "refs/remotes"] if args.all else ["refs/heads"]
    answer = await git(context, "for-each-ref", "--format=%(refname:lstrip=1)", *places)
    branches = [name.removeprefix("heads/") for name in answer.stdout.split("\n") if name]
    return {"current": current or None, "branches": branches, "count": len(branches), "success": True}


async def git_checkout(args: GitCheckout, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, target, created, output}`. What it would overwrite of unsaved work, git refuses to touch."""
    target = revision(args.target, "target")
    if args.create and args.files:
        raise ToolError("create makes a branch and files brings files back: give one of them")
    if args.create:
        command = ["--no-track", "-b", target, "--"]
    elif args.files:
        command = [target, "--", *await pathspecs(args.files, context)]
    else:
        # With `--` a target is never taken for a file, whose changes would be lost.
        command = ["--no-overwrite-ignore", target, "--"]
    answer = await git(context, "checkout", "--no-guess", "--no-recurse-submodules", *command, changes=True)
    return {
        "success": True,
        "target": output.clean(args.target),
        "created": args.create,
        "output": (answer.stderr + answer.stdout).strip("\n"),
    }


async def git_stash(args: GitStash, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, action, output}`."""
    entry = f"stash@{{{args.index}}}"
    match args.action:
        case "push":
            command = [f"--message={args.message}"] if args.message else []
        case "list":
            command = ["--format=%gd: %gs"]
        case "show":
            command = [*_PLAIN_DIFF, "--stat", "--patch", entry]
        case _:
            command = [entry]
    answer = await git(context, "stash", args.action, *command, changes=True)
    if answer.stdout.strip() == "No local changes to save":  # a pop would bring back somebody else's entry
        raise ToolError("nothing was stashed: there are no changes in files that git tracks")
    return {"success": True, "action": args.action, "output": (answer.stdout + answer.stderr).strip("\n")}


async def _only(file: str | None, context: ToolContext) -> list[str]:
    return await pathspecs([file] if file else [], context)


def _line_range(lines: str) -> list[str]:
    found = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9})", lines)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ToolError(f"lines must be the first and the last line, such as 10,20, not {lines[:100]!r}")
    return ["-L", lines]


GIT_STATUS = Tool(
    name="git_status",
    description="Show the branch and which files are staged, changed or untracked. Call it before git_add.",
    arguments=GitStatus,
    run=git_status,
    read_only=True,
)
GIT_DIFF = Tool(
    name="git_diff",
    description=(
        "Show changes that are not staged; those for the next commit with staged; those since a branch or commit with "
        "base. Look at them before you commit; stat gives an overview of a long diff. Untracked files are not in it."
    ),
    arguments=GitDiff,
    run=git_diff,
    read_only=True,
)
GIT_ADD = Tool(
    name="git_add",
    description=(
        "Stage files for the next commit, or mark conflicts in them as resolved. Name the files that belong to the "
        "change; all=true takes everything that git_status shows."
    ),
    arguments=GitAdd,
    run=git_add,
)
GIT_COMMIT = Tool(
    name="git_commit",
    description=(
        "Commit what is staged, in the user's name. Only when the user asked for a commit. If a hook of the "
        "repository refuses it, mend what the hook reports, stage again and commit again."
    ),
    arguments=GitCommit,
    run=git_commit,
)
GIT_LOG = Tool(
    name="git_log",
    description="List the latest commits, of the whole repository or of one file; see also git_blame.",
    arguments=GitLog,
    run=git_log,
    read_only=True,
)
GIT_BLAME = Tool(
    name="git_blame",
    description="Show for each line of a file which commit changed it last, by whom and when.",
    arguments=GitBlame,
    run=git_blame,
    read_only=True,
)
GIT_BRANCH = Tool(
    name="git_branch",
    description="List the branches and tell which is the current one. To make or change one use git_checkout.",
    arguments=GitBranch,
    run=git_branch,
    read_only=True,
)
GIT_CHECKOUT = Tool(
    name="git_checkout",
    description=(
        "Switch to a branch, tag or commit; changes that are not committed are kept, or git refuses. With create: "
        "make a new branch. With files: replace these files by those of target, which loses their changes."
    ),
    arguments=GitCheckout,
    run=git_checkout,
)
GIT_STASH = Tool(
    name="git_stash",
    description=(
        "Put changes of tracked files aside (push) and bring them back (pop); list, show or drop what was put aside. "
        "Untracked files stay where they are. A dropped entry is lost."
    ),
    arguments=GitStash,
    run=git_stash,
)
