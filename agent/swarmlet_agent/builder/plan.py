"""A Dockerfile as stages, and which of them a build needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from swarmlet_agent.builder.dockerfile import BadDockerfile, parse_lines
from swarmlet_agent.builder.instructions import Arg, Copy, From, Instruction, Label, Run, parse_instruction
from swarmlet_agent.builder.words import BadWord, expand


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows. base: an image, or -1 < base_stage the number of an earlier stage.

    needs: earlier stages that must be done first; images: others that --from names.
    """

    number: int
    begin: From
    image: str
    platform: str
    base_stage: int
    steps: tuple[Instruction, ...]
    needs: frozenset[int]


@dataclass(frozen=True, slots=True)
class Plan:
    """stages: those that are built, in the file's order; target is the last of them. args: ARG before the first FROM,
    by name, with the values they have. first_step: the number of each stage's FROM, by stage number."""

    stages: tuple[Stage, ...]
    target: int
    args: Mapping[str, str]
    builtin: Mapping[str, str]
    meta: tuple[Arg, ...]
    steps: int
    first_step: Mapping[int, int]
    escape: str
    used: frozenset[str]


def plan_build(
    text: str, *, build_args: Mapping[str, str | None], target: str = "", labels: Mapping[str, str] | None = None,
    builtin: Mapping[str, str] | None = None,
) -> Plan:
    """What to build for a target stage (by name or number, "" = the last). BadDockerfile.

    builtin: variables that every FROM may use (TARGETPLATFORM and others).
    """
    if not text.strip():
        raise BadDockerfile("the Dockerfile cannot be empty")
    file = parse_lines(text)
    meta: list[Arg] = []
    groups: list[tuple[From, list[Instruction]]] = []
    for line in file.lines:
        instruction = parse_instruction(line)
        if isinstance(instruction, From):
            groups.append((instruction, []))
        elif groups:
            groups[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            meta.append(instruction)
        else:
            raise BadDockerfile("no build stage in current context")
    if not groups:
        raise BadDockerfile("no build stage in current context")
    args, used = meta_args(meta, build_args, builtin or {}, file.escape)
    stages = _stages(groups, {**(builtin or {}), **args}, file.escape)
    wanted = _find(stages, target) if target else len(stages) - 1
    if wanted is None:
        raise BadDockerfile(f'target stage "{target}" could not be found')
    if labels:
        more = [
            Label(stages[wanted].begin.line, f"LABEL {name}={value}", ((name, value),), literal=True)
            for name, value in sorted(labels.items())
        ]
        stages[wanted] = replace(stages[wanted], steps=(*stages[wanted].steps, *more))
    chosen = tuple(stage for stage in stages if stage.number in _closure(stages, wanted))
    first, count = {}, len(meta)
    for stage in chosen:
        first[stage.number] = count + 1
        count += 1 + len(stage.steps)
    return Plan(chosen, wanted, args, builtin or {}, tuple(meta), count, first, file.escape, used)


def meta_args(
    meta: Sequence[Arg], build_args: Mapping[str, str | None], builtin: Mapping[str, str], escape: str
) -> tuple[dict[str, str], frozenset[str]]:
    """Values of the ARGs before FROM, and which build arguments they took."""
    values: dict[str, str] = {}
    used = set()
    for arg in meta:
        for name, default in arg.args:
            given = build_args.get(name)
            if name in build_args:
                used.add(name)
            if given is not None:
                values[name] = given
            elif default is not None:
                values[name] = expanded(default, {**builtin, **values}, escape, arg.line)
    return values, frozenset(used)


def expanded(text: str, variables: Mapping[str, str], escape: str, line: int) -> str:
    """A word with its variables replaced; BadDockerfile with the line."""
    try:
        return expand(text, variables, escape)
    except BadWord as err:
        raise BadDockerfile(f'failed to process "{text}": {err}', line) from err


def _stages(
    groups: Sequence[tuple[From, list[Instruction]]], args: Mapping[str, str], escape: str
) -> list[Stage]:
    stages: list[Stage] = []
    for number, (begin, steps) in enumerate(groups):
        image = expanded(begin.image, args, escape, begin.line)
        platform = expanded(begin.platform, args, escape, begin.line)
        if not image:
            raise BadDockerfile(f"base name ({begin.image}) should not be blank", begin.line)
        if begin.name and any(stage.begin.name == begin.name for stage in stages):
            raise BadDockerfile(f"duplicate name {begin.name}", begin.line)
        base = next((stage.number for stage in stages if stage.begin.name == image.lower()), -1)
        needs = {base} if base >= 0 else set()
        for step in steps:
            for name in _sources(step):
                found = _find(stages, name)
                if found is not None:
                    needs.add(found)
                elif name.isdigit() and int(name) >= number:
                    raise BadDockerfile(f"invalid from flag value {name}: index out of bounds", step.line)
                elif name.lower() == begin.name:
                    raise BadDockerfile(f"circular dependency detected on stage: {name}", step.line)
        stages.append(Stage(number, begin, image, platform, base, tuple(steps), frozenset(needs)))
    return stages


def _sources(step: Instruction) -> list[str]:
    if isinstance(step, Copy):
        return [step.source] if step.source else []
    if isinstance(step, Run):
        return [mount.stage for mount in step.mounts if mount.stage]
    return []


def _find(stages: Sequence[Stage], name: str) -> int | None:
    """By name (any case), else by number."""
    for stage in stages:
        if stage.begin.name and stage.begin.name == name.lower():
            return stage.number
    if name.isascii() and name.isdigit() and int(name) < len(stages):
        return int(name)
    return None


def find_stage(stages: Sequence[Stage], name: str, before: int) -> int | None:
    """The earlier stage that --from means, None for an image."""
    return next(
        (stage.number for stage in stages if stage.number < before and (
            (stage.begin.name and stage.begin.name == name.lower()) or str(stage.number) == name
        )), None,
    )


def _closure(stages: Sequence[Stage], wanted: int) -> set[int]:
    needed, waiting = set(), [wanted]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting.extend(stages[number].needs)
    return needed
