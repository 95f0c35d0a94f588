"""Binds, mounts, tmpfs and volumes: what becomes of each way to ask for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.common import BindOptions, ImageOptions, Mount, TmpfsOptions, VolumeOptions
from swarmlet.model.container import ContainerCreate, HostConfig
from swarmlet_agent.decide.mounts import from_mount, parse_bind, reaches_below, resolve_mounts, tmpfs_options
from swarmlet_agent.decide.points import MountPoint


def resolve(volumes: tuple[str, ...] = (), shared: dict[str, list[MountPoint]] | None = None, **host: object):
    request = ContainerCreate(host_config=HostConfig(**host), volumes={name: {} for name in volumes})  # type: ignore[arg-type]
    return resolve_mounts(request, shared or {})


def test_a_host_path_is_bound_privately_and_made_if_missing():
    assert parse_bind("/srv/a/:/data") == MountPoint(
        type="bind", source="/srv/a", destination="/data", propagation="rprivate", make_source=True
    )


@pytest.mark.parametrize(
    ("text", "rw", "propagation"),
    [("/a:/b:ro", False, "rprivate"), ("/a:/b:rw,rslave", True, "rslave"), ("/a:/b:z,ro,shared", False, "shared")],
)
def test_bind_modes(text, rw, propagation):
    point = parse_bind(text)
    assert (point.rw, point.propagation) == (rw, propagation)


def test_a_word_in_front_is_a_volumes_name_and_nocopy_keeps_it_empty():
    assert parse_bind("data:/var") == MountPoint(
        type="volume", name="data", destination="/var", driver="local", mode="z", copy_up=True
    )
    assert not parse_bind("data:/var:nocopy").copy_up


def test_a_lone_path_is_an_anonymous_volume():
    point = parse_bind("/var")
    assert (point.type, point.name, point.anonymous) == ("volume", "", True)


@pytest.mark.parametrize(
    "text",
    [
        "", "a:b:c:d", "/a:/b:bogus", "/a:/b:default", "/a:b", "/a:/", "/a:/b:ro,rw", "/a:/b:shared,slave", "/data:ro",
        ":/x:q", ":/x",
    ],
)
def test_broken_binds_are_refused(text):
    with pytest.raises(InvalidArgument, match=r"invalid volume specification|^invalid mode: "):
        parse_bind(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/data:ro", "invalid volume specification: '/data:ro'"),
        ("vol:x", "'vol:x': invalid mount config for type \"volume\": invalid mount path: 'x' mount path must be"),
        ("/a:/", "invalid mount config for type \"bind\": invalid specification: destination can't be '/'"),
        ("/a:/b:nocopy", "invalid mount config for type \"bind\": field VolumeOptions must not be specified"),
        ("vol:/b:rshared", "invalid mount config for type \"volume\": field BindOptions must not be specified"),
        ("a/b:/c", "create a/b: \"a/b\" includes invalid characters for a local volume name"),
        ("v:/c", "create v: volume name is too short"),
    ],
)
def test_binds_are_refused_in_dockerds_words(text, words):
    with pytest.raises(InvalidArgument) as caught:
        parse_bind(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount(type="bind", target="/x"), "field Source must not be empty"),
        (Mount(type="bind", source="a", target="/x"), "mount path must be absolute"),
        (Mount(type="bind", source="/a", target=""), "field Target must not be empty"),
        (Mount(type="bind", source="/a", target="/"), "destination can't be '/'"),
        (Mount(type="bind", source="/a", target="/x", volume_options=VolumeOptions()), "VolumeOptions must not"),
        (Mount(type="bind", source="/a", target="/x", bind_options=BindOptions(propagation="up")), "propagation"),
        (Mount(type="volume", target="/x", read_only=True), "ReadOnly"),
        (Mount(type="tmpfs", source="a", target="/x"), "field Source must not be specified"),
        (Mount(type="image", target="/x"), "field Source must not be empty"),
        (Mount(type="image", source="i", target="/x", bind_options=BindOptions()), "BindOptions must not"),
        (Mount(type="floppy", target="/x"), "mount type unknown"),
    ],
)
def test_broken_mounts_are_refused_with_their_kind(mount, words):
    with pytest.raises(InvalidArgument, match=words) as caught:
        from_mount(mount)
    assert str(caught.value).startswith("invalid mount config")
    with pytest.raises(InvalidArgument, match=r"^create a/b: .* invalid characters"):
        from_mount(Mount(type="volume", source="a/b", target="/x"))


def test_kinds_and_options_not_built_are_refused_by_name():
    with pytest.raises(NotSupported, match="npipe"):
        from_mount(Mount(type="npipe", source="a", target="/x"))
    with pytest.raises(NotSupported, match='mount type "cluster" is not supported'):
        from_mount(Mount(type="cluster", source="a", target="/x"))


def test_an_image_is_mounted_whole_or_in_part():
    point = from_mount(Mount(type="image", source="busybox", target="/x/", read_only=True))
    assert (point.type, point.name, point.destination, point.rw) == ("image", "busybox", "/x", False)
    part = from_mount(Mount(type="image", source="busybox", target="/x", image_options=ImageOptions(subpath="a/b")))
    assert part.subpath == "a/b" and part.rw
    for subpath in ("/a", "../a", "a/../.."):
        with pytest.raises(InvalidArgument, match="relative path within the image"):
            from_mount(Mount(type="image", source="i", target="/x", image_options=ImageOptions(subpath=subpath)))


@pytest.mark.parametrize(
    ("options", "read_only", "below"),
    [
        (BindOptions(), True, ""),
        (BindOptions(read_only_non_recursive=True), True, "off"),
        (BindOptions(read_only_force_recursive=True, propagation="rprivate"), True, "force"),
        (BindOptions(non_recursive=True), False, ""),
    ],
)
def test_how_far_read_only_reaches(options, read_only, below):
    point = from_mount(Mount(type="bind", source="/s", target="/x", read_only=read_only, bind_options=options))
    assert (point.read_only_below, point.rw, point.non_recursive) == (below, not read_only, options.non_recursive)


@pytest.mark.parametrize(
    ("options", "read_only"),
    [
        (BindOptions(read_only_force_recursive=True), False),
        (BindOptions(read_only_non_recursive=True), False),
        (BindOptions(read_only_force_recursive=True, read_only_non_recursive=True), True),
        (BindOptions(read_only_force_recursive=True, non_recursive=True), True),
        (BindOptions(read_only_force_recursive=True, propagation="rslave"), True),
    ],
)
def test_contradictory_recursion_is_refused(options, read_only):
    with pytest.raises(InvalidArgument, match="invalid mount config"):
        from_mount(Mount(type="bind", source="/s", target="/x", read_only=read_only, bind_options=options))


def test_kernels_that_make_whole_trees_read_only():
    assert [reaches_below(release) for release in ("5.11.9", "5.12.0-rc1", "6.1.0-13-amd64", "4.19", "odd")] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_a_subpath_stays_in_its_volume():
    mount = Mount(type="volume", source="data", target="/x", volume_options=VolumeOptions(subpath="a/b"))
    point = from_mount(mount)
    assert (point.subpath, point.copy_up) == ("a/b", True)
    assert from_mount(Mount(type="volume", source="data", target="/x", volume_options=VolumeOptions(subpath="a/../b")))
    for source, path in (("data", "../up"), ("data", "/abs"), ("data", "a/../../b"), ("", "a")):
        with pytest.raises(InvalidArgument, match=r"(?i)subpath"):
            from_mount(Mount(type="volume", source=source, target="/x", volume_options=VolumeOptions(subpath=path)))


def test_tmpfs_takes_every_word_docker_knows():
    assert tmpfs_options(["defaults", "dirsync", "nr_inodes=5", "rslave"])[-3:] == ("dirsync", "nr_inodes=5", "rslave")
    for word in ("bind", "remount", "z", "cached", "size"):
        with pytest.raises(InvalidArgument, match="invalid tmpfs option"):
            tmpfs_options([word])


def test_tmpfs_options_override_dockers_defaults():
    point = from_mount(Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=1024, mode=0o700)))
    assert point.options == ("noexec", "nosuid", "nodev", "size=1024", "mode=700")
    assert tmpfs_options(["exec", "size=1m", "size=2m"]) == ("nosuid", "nodev", "exec", "size=2m")
    with pytest.raises(InvalidArgument, match="invalid tmpfs option"):
        tmpfs_options(["bogus=1"])


def test_parents_come_before_what_lies_in_them():
    points = resolve(("/a/b/c",), binds=("/x:/a/b", "/y:/a"), tmpfs={"/a/b/d": ""})
    assert [point.destination for point in points] == ["/a", "/a/b", "/a/b/c", "/a/b/d"]


def test_the_images_volume_yields_to_a_mount_at_the_same_place():
    points = resolve(("/data",), binds=("/host:/data",))
    assert [point.type for point in points] == ["bind"]


def test_two_mounts_at_one_place_are_refused():
    with pytest.raises(InvalidArgument, match="Duplicate mount point: /data"):
        resolve(binds=("/a:/data",), mounts=(Mount(type="volume", source="vol", target="/data/"),))


def test_volumes_from_brings_anothers_points_read_only_if_asked():
    theirs = [MountPoint(type="volume", name="v", destination="/v", copy_up=True)]
    (point,) = resolve(shared={"other": theirs}, volumes_from=("other:ro",))
    assert (point.name, point.rw, point.copy_up) == ("v", False, False)
    with pytest.raises(InvalidArgument, match="invalid mode: "):
        resolve(shared={"other": theirs}, volumes_from=("other:x",))


@given(text=st.text(alphabet="/ab.:,rowz-_\\", max_size=14))
def test_any_bind_is_either_understood_or_refused(text):
    try:
        point = parse_bind(text)
    except InvalidArgument:
        return
    assert point.destination.startswith("/")
    assert ".." not in point.destination.split("/")
    assert point.destination != "/"
    assert point.type == "volume" or point.source.startswith("/")


def bound(*, data_dir: str = "/var/lib/engine", shallow: bool = False, **host: object) -> MountPoint:
    request = ContainerCreate(host_config=HostConfig(**host))  # type: ignore[arg-type]
    (point,) = resolve_mounts(request, {}, data_dir=data_dir, shallow=shallow)
    return point


def asked_for(source: str, propagation: str) -> list[dict[str, object]]:
    """The two ways to say it."""
    options = BindOptions(propagation=propagation) if propagation else None
    return [
        {"binds": (f"{source}:/x:{propagation}" if propagation else f"{source}:/x",)},
        {"mounts": (Mount(type="bind", source=source, target="/x", bind_options=options),)},
    ]


@pytest.mark.parametrize("source", ["/", "/var/lib", "/var/lib/engine", "/var/lib/engine/containers/"])
def test_binds_of_the_engines_own_folder_hear_of_unmounts_there(source):
    """moby TestMountDaemonRoot."""
    for host in asked_for(source, ""):
        point = bound(**host)
        assert (point.propagation, point.own_propagation) == ("rslave", True)
    for propagation in ("rslave", "rshared"):
        for host in asked_for(source, propagation):
            point = bound(**host)
            assert (point.propagation, point.own_propagation) == (propagation, False)
    for propagation in ("private", "rprivate", "slave", "shared"):
        for host in asked_for(source, propagation):
            with pytest.raises(InvalidArgument, match='must use either propagation mode "rslave" or "rshared"'):
                bound(**host)


def test_other_binds_keep_to_themselves():
    for source in ("/srv", "/var/lib/engine2", "/var/lib/eng"):
        for host in asked_for(source, ""):
            assert bound(**host).propagation == "rprivate"
        for host in asked_for(source, "shared"):
            assert bound(**host).propagation == "shared"


def test_before_api_1_44_read_only_did_not_reach_below():
    """moby TestContainerBindMountReadOnlyDefault."""
    for host in ({"binds": ("/s:/x:ro",)}, {"mounts": (Mount(type="bind", source="/s", target="/x", read_only=True),)}):
        assert bound(**host).read_only_below == ""
        assert bound(**host, shallow=True).read_only_below == "off"
    assert bound(binds=("/s:/x",), shallow=True).read_only_below == ""
