"""`spawn_agent`, `spawn_agents` and `task`: parts of the work for other agents in the same workspace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools.base import Assignment, Emit, Report, Tool, ToolContext
from pawand.tools.live import Live
from pawand.tools.output import clip

MAX_TASKS = 8
MAX_PARALLEL = 4
SPAWN_SECS = 120
TASK_SECS = 300
LEAST_CHARS = 300  # of a result
OTHER_CHARS = 300  # what stands beside it

Prompt = Annotated[str, Meta(min_length=1, description="The whole task: the agent sees nothing else")]
Timeout = Annotated[int, Meta(ge=1, le=3600, description="Seconds")]
Model = Annotated[str, Meta(min_length=1, max_length=256, description="Another model of the same provider")]
Folder = Annotated[str, Meta(description="Folder of the workspace to work in")]
Role = Literal["explore", "plan", "task", "reviewer", "designer", "librarian"]

_ROLES: dict[Role, str] = {
    "explore": "Your part: explore. Find where things are and how they work, and name the places.",
    "plan": "Your part: plan. Work out the steps, the files that each of them touches, and how to check it.",
    "task": "Your part: do the task from beginning to end, and check it.",
    "reviewer": "Your part: review. Look for what is wrong, missing or risky; for each finding name the place and why.",
    "designer": "Your part: design. Shape the interface or structure that is asked for, and write it into the files.",
    "librarian": "Your part: look up. Find what the project and its documents say, and quote it with the place.",
}
_MAY_CHANGE = ("task", "designer")


class SpawnAgent(Struct):
    prompt: Prompt
    model: Model | None = None
    timeout: Timeout = SPAWN_SECS
    workspace: Folder = "."
    retries: Annotated[int, Meta(ge=0, le=2, description="How often to try again when it fails")] = 0


class Spawned(Struct, forbid_unknown_fields=True):
    prompt: Prompt
    model: Model | None = None
    timeout: Timeout = SPAWN_SECS
    workspace: Folder = "."


class SpawnAgents(Struct):
    tasks: Annotated[list[Spawned], Meta(min_length=1, max_length=MAX_TASKS)]


class Part(Struct, forbid_unknown_fields=True):
    agent: Annotated[Role, Meta(description="task and designer may change files; the others only read and search")]
    assignment: Prompt


class Task(Struct):
    agent: Annotated[Role, Meta(description="task and designer may change files; the others only read")] | None = None
    assignment: Prompt | None = None
    tasks: Annotated[list[Part], Meta(max_length=MAX_TASKS, description="Several at once, in place of the two")] = (
        msgspec.field(default_factory=list)
    )
    context: Annotated[str, Meta(description="What all of them should know")] = ""
    description: Annotated[str, Meta(description="What it is for, in a few words")] = ""
    model: Model | None = None
    timeout: Timeout = TASK_SECS


async def spawn_agent(args: SpawnAgent, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, result, error?, attempt, total_attempts, subagent_id, duration_ms, iterations, …}`."""
    assignment = await _spawned(args, "agent", context)
    total = args.retries + 1
    attempt = 0
    while True:
        attempt += 1
        [report] = await _all([assignment], context, emit)
        if not report.error or attempt == total:
            return {**_told(report), "attempt": attempt, "total_attempts": total}


async def spawn_agents(args: SpawnAgents, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, total_tasks, succeeded, failed, results: […]}` in the order of the tasks."""
    assignments = [await _spawned(task, f"agent {number}", context) for number, task in enumerate(args.tasks, 1)]
    return _summed_up([_told(report) for report in await _all(assignments, context, emit)])


async def task(args: Task, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{agent, status, result, usage, …}` of one, or what spawn_agents returns of several."""
    if args.tasks and (args.agent or args.assignment):
        raise ToolError("give either agent and assignment, or tasks")
    if not args.tasks and (args.agent is None or args.assignment is None):
        raise ToolError("give agent and assignment, or tasks with an agent and an assignment each")
    parts = args.tasks or [Part(args.agent or "task", args.assignment or "")]
    assignments = [
        Assignment(
            name=part.agent if len(parts) == 1 else f"{part.agent} {number}",
            prompt=f"{args.context}\n\n{part.assignment}".strip(),
            role=_ROLES[part.agent],
            read_only=part.agent not in _MAY_CHANGE,
            model=args.model,
            timeout_secs=args.timeout,
        )
        for number, part in enumerate(parts, 1)
    ]
    reports = await _all(assignments, context, emit)
    rows = [
        {"agent": part.agent, "status": "failed" if report.error else "completed", **_told(report)}
        for part, report in zip(parts, reports, strict=True)
    ]
    return _summed_up(rows) if args.tasks else rows[0]


def _spawner(context: ToolContext) -> Callable[[Assignment, Emit], Awaitable[Report]]:
    if context.spawn is None:
        raise ToolError("an agent that works for another one, or a batch, may start none: do the work yourself")
    return context.spawn


async def _spawned(args: SpawnAgent | Spawned, name: str, context: ToolContext) -> Assignment:
    prompt = args.prompt
    if args.workspace != ".":
        folder = await asyncio.to_thread(_folder, args.workspace, context)
        prompt = f"Work in the folder {folder}.\n\n{prompt}"
    return Assignment(name=name, prompt=prompt, model=args.model, timeout_secs=args.timeout)


def _folder(path: str, context: ToolContext) -> str:
    with context.workspace.open_folder(path):
        return context.workspace.resolve(path)


async def _all(assignments: list[Assignment], context: ToolContext, emit: Emit) -> list[Report]:
    """Side by side, a few at a time; each result gets its share of the room."""
    spawn = _spawner(context)
    places = asyncio.Semaphore(MAX_PARALLEL)
    room = max(LEAST_CHARS, (context.max_result_chars - OTHER_CHARS) // len(assignments) - OTHER_CHARS)

    async def run(assignment: Assignment, live: Live) -> Report:
        async with places:
            report = await spawn(assignment, live.feed)
            return msgspec.structs.replace(report, result=clip(report.result, room))

    with contextlib.closing(Live(emit)) as live:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(assignment, live)) for assignment in assignments]
    return [task.result() for task in tasks]


def _told(report: Report) -> dict[str, Any]:
    told: dict[str, Any] = {
        "success": not report.error,
        "result": report.result,
        "subagent_id": report.id,
        "iterations": report.iterations,
        "tool_calls": report.tool_calls,
        "usage": msgspec.to_builtins(report.usage),
        "duration_ms": report.duration_ms,
    }
    return told | ({"error": report.error} if report.error else {})


def _summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    succeeded = sum(row["success"] for row in rows)
    return {
        "success": succeeded == len(rows),
        "total_tasks": len(rows),
        "succeeded": succeeded,
        "failed": len(rows) - succeeded,
        "results": rows,
    }


SPAWN_AGENT = Tool(
    name="spawn_agent",
    description=(
        "Give a self-contained part of the work to another agent with the same tools and its own conversation, and "
        "wait for its result. It keeps long searches out of yours."
    ),
    arguments=SpawnAgent,
    run=spawn_agent,
    for_parents=True,
)
SPAWN_AGENTS = Tool(
    name="spawn_agents",
    description=f"The same for up to {MAX_TASKS} parts that do not touch the same files; {MAX_PARALLEL} run at once.",
    arguments=SpawnAgents,
    run=spawn_agents,
    for_parents=True,
)
TASK = Tool(
    name="task",
    description=(
        "Give a part of the work to an agent with a role: explore, plan, reviewer and librarian only read and search; "
        f"task and designer change files. Or up to {MAX_TASKS} of them at once, in `tasks`."
    ),
    arguments=Task,
    run=task,
    for_parents=True,
)
