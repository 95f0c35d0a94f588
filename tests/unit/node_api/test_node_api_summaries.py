"""The list of containers kept ready is at every moment the list that would be made anew."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.engine_api.quick import QuickCall
from swarmlet.engine_api.versions import NEWEST
from swarmlet.errors import NotFound
from swarmlet.model.container import ContainerCreate
from swarmlet.model.times import NS
from swarmlet_agent.api.shapes.durations import next_change, status_text
from swarmlet_agent.api.shapes.summary import container_summary
from swarmlet_agent.api.summaries import Summaries
from swarmlet_agent.engine.container import Container, ContainerState
from swarmlet_agent.images.types import Image, ImageConfig

START = 1_800_000_000 * NS


class Engine:
    def __init__(self, count: int) -> None:
        self.records = [make(number) for number in range(count)]

    def list(self) -> list[Container]:
        return list(self.records)

    def get(self, ref: str) -> Container:
        raise NotFound("container", ref)


class Images:
    def __init__(self) -> None:
        self.revision = 0
        self.names = {"busybox": "sha256:1"}

    def get(self, ref: str) -> Image:
        if ref not in self.names:
            raise NotFound("image", ref)
        return Image(
            id=self.names[ref], config=ImageConfig(), layers=(), architecture="amd64", os="linux", created=0,
            size_bytes=0,
        )

    def name(self, ref: str, image_id: str) -> None:
        self.names[ref] = image_id
        self.revision += 1


def make(number: int) -> Container:
    state = ContainerState(status="running", started_at=START + number * NS // 3)
    return Container(
        id=f"{number:064x}", name=f"c{number}", created_at=START + number, request=ContainerCreate(), state=state,
        image_id="sha256:1", image_ref="busybox", args=("sleep", "9"),
    )


def ask(summaries: Summaries, query: str = "all=1") -> list[dict[str, object]]:
    answer: list[dict[str, object]] = msgspec.json.decode(summaries.body(QuickCall("GET", NEWEST, query), query))
    return answer


@given(steps=st.lists(st.tuples(st.integers(0, 200_000_000_000), st.integers(0, 3)), max_size=12))
def test_it_is_never_out_of_date(steps: list[tuple[int, int]]) -> None:
    now = START + 2 * NS
    engine, images = Engine(3), Images()
    summaries = Summaries(engine, images, lambda: now)
    for wait, change in steps:
        now += wait
        if change == 1:
            state = replace(engine.records[0].state, status="exited", finished_at=now)
            engine.records[0] = replace(engine.records[0], state=state)
        elif change == 2:
            images.name("busybox", "sha256:2" if images.names["busybox"] == "sha256:1" else "sha256:1")
        elif change == 3:
            engine.records.append(make(len(engine.records)))

        name = "busybox" if images.names["busybox"] == "sha256:1" else "sha256:1"
        newest_first = sorted(engine.records, key=lambda each: -each.created_at)
        assert ask(summaries) == [container_summary(each, name, now) for each in newest_first]


@given(
    status=st.sampled_from(["running", "paused", "exited", "restarting"]), age=st.integers(0, 10**17),
    part=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_a_status_stays_as_it_is_until_its_next_change(status: str, age: int, part: float) -> None:
    state = ContainerState(status=status, started_at=START, finished_at=0 if status == "running" else START)
    now = START + age

    until = next_change(state, now)

    assert until > now
    assert status_text(state, now + int((until - now) * part)) == status_text(state, now)


def test_an_unchanged_list_is_not_encoded_again() -> None:
    now = START + 100 * NS
    summaries = Summaries(Engine(2), Images(), lambda: now)
    call = QuickCall("GET", NEWEST, "")

    assert summaries.body(call, "") is summaries.body(call, "")


def test_kept_answers_are_bounded() -> None:
    summaries = Summaries(Engine(2), Images(), lambda: START)

    for number in range(1000):
        ask(summaries, f"limit={number}")

    assert len(summaries._answers) <= 32
