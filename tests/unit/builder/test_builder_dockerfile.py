"""How a Dockerfile is read: lines, directives, continuations, here-documents, instructions, stages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.dockerfile import BadDockerfile, parse_lines, parse_one
from swarmlet_agent.builder.instructions import parse_instruction
from swarmlet_agent.builder.plan import Plan, plan_build


def one(text: str) -> kinds.Instruction:
    return parse_instruction(parse_one(text))


def plan(text: str, target: str = "", **build_args: str | None) -> Plan:
    return plan_build(text, build_args=build_args, target=target, builtin={"TARGETARCH": "amd64"})


def test_continuations_join_and_comments_and_empty_rows_in_them_vanish() -> None:
    file = parse_lines("\ufeff# comment\n\nRUN a && \\\n   # inside\n\n  b \\  \n c\\\\\nrun d\n")
    assert [(line.number, line.keyword, line.rest) for line in file.lines] == [
        (3, "run", "a &&   b  c\\\\"), (8, "run", "d"),
    ]


def test_the_escape_directive_counts_only_at_the_top() -> None:
    assert [line.rest for line in parse_lines("# escape=`\nRUN a `\n b\\\nRUN c\n").lines] == ["a  b\\", "c"]
    assert [line.rest for line in parse_lines("#\n# escape=`\nRUN a `\nRUN b\n").lines] == ["a `", "b"]
    with pytest.raises(BadDockerfile, match="invalid escape token 'x'"):
        parse_lines("# escape=x\nRUN a\n")
    with pytest.raises(BadDockerfile, match="only one escape parser directive"):
        parse_lines("# escape=`\n# escape=`\nRUN a\n")


def test_a_continuation_at_the_end_of_the_file_ends_there() -> None:
    assert [line.rest for line in parse_lines("RUN a \\\n").lines] == ["a"]


def test_flags_stand_before_the_arguments() -> None:
    line = parse_one('COPY --from=x --chown="a b" --chmod=644 -- --file /to')
    assert line.flags == ("--from=x", "--chown=a b", "--chmod=644") and line.rest == "--file /to"


def test_here_documents_end_at_their_names() -> None:
    lines = parse_lines("RUN <<A cat <<-'B'\nRUN x\nA\n\tone\n\tB\nRUN y\n").lines
    first, second = lines[0].heredocs
    assert (first.content, first.expands, first.chomp) == ("RUN x\n", True, False)
    assert (second.content, second.expands, second.chomp) == ("one\n", False, True)
    assert lines[1].rest == "y" and lines[1].number == 6
    with pytest.raises(BadDockerfile, match="line 1: unterminated heredoc"):
        parse_lines("RUN <<A\nnever\n")
    assert parse_one('RUN ["a", "<<B"]').heredocs == () and parse_one("ENV a=<<B").heredocs == ()


@pytest.mark.parametrize(("text", "value"), [
    ("ENV a=b c=\"d e\"", (("a", "b"), ("c", '"d e"'))), ("ENV a b  c", (("a", "b  c"),)),
    ("LABEL x='y z'", (("x", "'y z'"),)),
])
def test_pairs_are_written_in_two_ways(text: str, value: object) -> None:
    step = one(text)
    assert isinstance(step, kinds.Env | kinds.Label) and step.pairs == value


def test_commands_have_a_shell_form_and_a_json_form() -> None:
    shell, listed, broken = one("CMD a b"), one('CMD ["a", "b"]'), one("CMD ['a']")
    assert isinstance(shell, kinds.Cmd) and (shell.words, shell.shell) == (("a b",), True)
    assert isinstance(listed, kinds.Cmd) and (listed.words, listed.shell) == (("a", "b"), False)
    assert isinstance(broken, kinds.Cmd) and broken.shell


@pytest.mark.parametrize(("text", "why"), [
    ("FROB", "unknown instruction: FROB"), ("ENV a", "ENV must have two arguments"), ("ENV", "at least one argument"),
    ("ENV a=b c", "can't find = in \"c\""), ("ENV =b", "names can not be blank"), ("COPY a", "only one was provided"),
    ("COPY --x a b", "unknown flag: --x"), ("COPY --from=a --from=b x y", "duplicate flag"),
    ("COPY --from a b", "missing a value on flag: from"), ("FROM a b", "one or three arguments"),
    ("FROM a AS 1x", "invalid name for build stage"), ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
    ("ONBUILD FROM x", "FROM isn't allowed"), ("ONBUILD FROB", "unknown instruction"), ("SHELL a", "JSON form"),
    ("HEALTHCHECK FROB x", "Unknown type"), ("HEALTHCHECK --retries=0 CMD x", "at least 1"),
    ("HEALTHCHECK --interval=x CMD y", "invalid duration"), ("HEALTHCHECK CMD", "Missing command"),
    ("RUN", "at least one"),
    ("VOLUME [\"\"]", "can not be an empty string"), ("RUN --network=x y", "invalid network mode"),
    ("RUN --security=insecure x", "insecure is not supported"),
    ("RUN --mount=type=x,target=/y z", "unsupported mount type"),
    ("RUN --mount=type=bind,target=/x,size=1 y", "unexpected key"),
    ("RUN --mount=target=/x,frob=1 y", "unexpected key"),
    ("RUN --mount=type=secret x", "one of source, target required"),
    ("RUN --mount=type=secret,id=a,source=b x", "both source and id can't be set"),
    ("RUN --mount=type=secret,id=a,mode=9 x", "for mode"), ("RUN --mount=type=ssh,env=A x", "unexpected key"),
    ("RUN --mount=type=ssh,required=maybe x", "invalid value for required"),
    ("RUN --mount=type=bind,from=$a,target=/x y", "doesn't support variable expansion"),
    ("RUN --mount=type=cache,target=/x,source=/y x", "there is no from"),
    ("RUN --mount=type=cache x", "target is missing"), ("COPY --keep-git-dir a b", "unknown flag"),
    ("USER", "exactly one argument"), ("STOPSIGNAL a b", "exactly one"),
])
def test_mistakes_tell_their_line(text: str, why: str) -> None:
    with pytest.raises(BadDockerfile, match="dockerfile parse error on line 2: ") as caught:
        plan(f"FROM x\n{text}\n")
    assert why in str(caught.value)


@pytest.mark.parametrize(("text", "why"), [
    ("skip", 'invalid check option "skip"'), ("frob=1", 'invalid check option "frob"'),
    ("error=maybe", 'failed to parse check option "error=maybe"'),
])
def test_a_check_directive_that_is_none_is_a_mistake(text: str, why: str) -> None:
    with pytest.raises(BadDockerfile) as caught:
        plan(f"# syntax=docker/dockerfile:1\n# check={text}\nFROM x\n")
    assert why in str(caught.value)
    plan("# check=skip=JSONArgsRecommended,StageNameCasing;error=true\nFROM x\n")


def test_stages_know_what_they_need_and_others_are_left_out() -> None:
    built = plan(
        "ARG BASE=alpine\nFROM $BASE AS a\nRUN x\nFROM scratch AS unused\nFROM a AS b\n"
        "FROM --platform=linux/$TARGETARCH ${BASE}:3\nCOPY --from=B /x /\nCOPY --from=image /y /\n"
        "RUN --mount=from=0,target=/m z\n"
    )
    assert [stage.number for stage in built.stages] == [0, 2, 3]
    assert [sorted(stage.needs) for stage in built.stages] == [[], [0], [0, 2]]
    assert (built.stages[0].image, built.stages[2].image, built.stages[2].platform) == (
        "alpine", "alpine:3", "linux/amd64",
    )
    assert built.steps == 8 and built.first_step == {0: 2, 2: 4, 3: 5}


def test_a_target_may_be_a_name_or_a_number() -> None:
    text = "FROM x AS one\nRUN a\nFROM y\nRUN b\n"
    assert [plan(text, target=target).target for target in ("one", "ONE", "0", "1", "")] == [0, 0, 0, 1, 1]
    with pytest.raises(BadDockerfile, match="could not be found"):
        plan(text, target="2")


def test_arguments_before_from_take_values_and_defaults_in_order() -> None:
    built = plan("ARG A=1\nARG B=$A-2\nARG C\nFROM x:$B\n", A="9", D="0")
    assert built.args == {"A": "9", "B": "9-2"} and built.stages[0].image == "x:9-2" and built.used == {"A"}


@pytest.mark.parametrize(("text", "why"), [
    ("", "cannot be empty"), ("# only\n", "no instructions"), ("RUN x\n", "no build stage"), ("FROM $NO\n", "blank"),
    ("FROM x AS a\nFROM y AS a\n", "duplicate name"), ("FROM x\nCOPY --from=1 a b\n", "index out of bounds"),
    ("FROM x AS me\nCOPY --from=me a b\n", "circular dependency"), ("ARG A=${B\nFROM x\n", "missing '}'"),
])
def test_what_is_no_plan_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadDockerfile, match=why):
        plan(text)


WORDS = st.sampled_from([
    "FROM", "RUN", "COPY", "ARG", "ENV", "ONBUILD", "HEALTHCHECK", "x", "a=b", "$A", "${A:-b}", "--from=0", "[\"a\"]",
    "<<E", "E", "\\", "#", "'", '"', "AS", "\t",
])


@given(st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=8).map("\n".join))
def test_any_text_is_a_plan_or_a_mistake(text: str) -> None:
    try:
        built = plan("FROM base\n" + text)
    except BadDockerfile as err:
        assert str(err)
    else:
        assert built.stages[-1].number == built.target
        assert all(need in built.first_step for stage in built.stages for need in stage.needs)


@given(st.text())
def test_arbitrary_bytes_end_in_an_answer(text: str) -> None:
    try:
        parse_lines(text)
    except BadDockerfile as err:
        assert str(err)
