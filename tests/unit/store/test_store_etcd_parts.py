"""The pure parts around etcd: messages, errors, endpoints, versions, command lines, history."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import Internal, InvalidArgument, SwarmletError
from swarmlet.process import ProcessId, identify, read_pid_file, write_pid_file
from swarmlet_manager.store.etcd.binary import EtcdSettings, command_line, objection, parse_version
from swarmlet_manager.store.etcd.channels import Channels, Tls, grpc_target, translate
from swarmlet_manager.store.etcd.messages import message
from swarmlet_manager.store.kv import Compacted, LeaseGone, NoAnswer, NoSpace, TooLarge
from swarmlet_manager.store.maintenance import History

TLS = Tls(ca=Path("/tls/ca.pem"), cert=Path("/tls/cert.pem"), key=Path("/tls/key.pem"))


def test_messages_have_the_wire_form_of_etcds_api() -> None:
    put = message("PutRequest")(key=b"k", value=b"v", lease=5)
    assert put.SerializeToString() == b"\x0a\x01k\x12\x01v\x18\x05"
    txn = message("TxnRequest")(success=[message("RequestOp")(request_put=put)])
    assert txn.SerializeToString() == b"\x12\x0a\x12\x08" + put.SerializeToString()
    watch = message("WatchRequest")(progress_request=message("WatchProgressRequest")())
    assert watch.SerializeToString() == b"\x1a\x00"
    header = message("ResponseHeader").FromString(b"\x08\x01\x18\x02\x20\x03")
    assert (header.cluster_id, header.revision, header.raft_term) == (1, 2, 3)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Compacted),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision", InvalidArgument),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", NoSpace),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", NoAnswer),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (9 vs. 8)", TooLarge),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", TooLarge),
        ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request", TooLarge),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", InvalidArgument),
        ("NOT_FOUND", "etcdserver: requested lease not found", LeaseGone),
        ("UNAVAILABLE", "etcdserver: no leader", NoAnswer),
        ("UNAVAILABLE", "failed to connect to all addresses", NoAnswer),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", NoAnswer),
        ("UNKNOWN", "context deadline exceeded", NoAnswer),
        ("UNKNOWN", "not a primary lessor", NoAnswer),
        ("UNKNOWN", "something else", Internal),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Internal),
    ],
)
def test_errors_mean_what_etcd_means(code: str, details: str, kind: type[SwarmletError]) -> None:
    assert type(translate(code, details)) is kind


def test_endpoints_name_a_scheme_and_a_place() -> None:
    assert grpc_target("https://10.0.0.1:2379") == ("10.0.0.1:2379", True)
    assert grpc_target("http://[::1]:2379/") == ("[::1]:2379", False)
    assert grpc_target("unix:/run/etcd:0") == ("unix:/run/etcd:0", False)
    assert grpc_target("unix:///run/etcd:0") == ("unix:/run/etcd:0", False)
    for wrong in ("10.0.0.1:2379", "ftp://x", "https://", "unix:etcd:0", "", "unix:/" + "x" * 108):
        with pytest.raises(InvalidArgument):
            grpc_target(wrong)


def test_a_secure_endpoint_without_certificates_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="certificate"):
        Channels(["https://10.0.0.1:2379"])
    with pytest.raises(InvalidArgument, match="no etcd endpoint"):
        Channels([])


def test_versions_are_read_from_what_etcd_prints() -> None:
    assert parse_version("etcd Version: 3.4.23\nGit SHA: Not provided\n") == (3, 4, 23)
    with pytest.raises(InvalidArgument):
        parse_version("podman version 4")


@given(st.tuples(st.integers(2, 4), st.integers(0, 7), st.integers(0, 40)))
def test_exactly_the_unsound_versions_are_refused(version: tuple[int, int, int]) -> None:
    sound = (3, 4, 22) <= version < (3, 5, 0) or version >= (3, 5, 6)
    assert (objection(version) is None) == sound


def test_alone_it_listens_on_sockets_only() -> None:
    line = command_line(EtcdSettings(data_dir=Path("/d"), name="m1"), "/usr/bin/etcd", "t")
    assert "--listen-client-urls=unix://etcd:0" in line
    assert "--listen-peer-urls=unix://peer:0" in line
    assert "--initial-cluster=m1=unix://peer:0" in line
    assert "--initial-cluster-state=new" in line
    assert not any("http" in word or "cert" in word for word in line)


def test_what_etcd_keeps_in_memory_of_large_writes_is_bounded() -> None:
    line = command_line(EtcdSettings(data_dir=Path("/d"), name="m1"), "/usr/bin/etcd", "t")
    (count,) = (int(word.split("=")[1]) for word in line if word.startswith("--snapshot-count="))
    always_kept, our_write_bytes = 5000, 16 << 10
    assert (always_kept + count) * our_write_bytes < 128 << 20


def test_with_certificates_everyone_must_show_one() -> None:
    settings = EtcdSettings(
        data_dir=Path("/d"), name="m2", host="fd00::2", tls=TLS, peers=(("m1", "https://10.0.0.1:2380"),)
    )
    line = command_line(settings, "etcd", "t")
    assert "--listen-client-urls=unix://etcd:0,https://[fd00::2]:2379" in line
    assert "--advertise-client-urls=https://[fd00::2]:2379" in line
    assert "--initial-cluster=m1=https://10.0.0.1:2380,m2=https://[fd00::2]:2380" in line
    assert "--initial-cluster-state=existing" in line
    assert {"--client-cert-auth=true", "--peer-client-cert-auth=true"} <= set(line)
    assert {"--trusted-ca-file=/tls/ca.pem", "--peer-trusted-ca-file=/tls/ca.pem"} <= set(line)


@pytest.mark.parametrize(
    "wrong",
    [
        {"data_dir": Path("relative")},
        {"host": "10.0.0.1"},
        {"tls": TLS},
        {"peers": (("m1", "https://10.0.0.1:2380"),)},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        EtcdSettings(**{"data_dir": Path("/d"), "name": "m1", **wrong})  # type: ignore[arg-type]


def test_a_pid_file_is_believed_only_if_the_start_time_fits(tmp_path: Path) -> None:
    own = identify(os.getpid())
    assert own is not None
    path = tmp_path / "pid"
    assert read_pid_file(path) is None
    write_pid_file(path, own)
    assert read_pid_file(path) == own
    write_pid_file(path, ProcessId(own.pid, own.started + 1))
    assert read_pid_file(path) is None
    path.write_text("nonsense\n")
    assert read_pid_file(path) is None
    assert identify(2**22 + 1) is None


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 1000)), max_size=20), st.integers(0, 100))
def test_history_answers_with_the_newest_revision_that_is_old_enough(
    notes: list[tuple[int, int]], time: int
) -> None:
    history = History()
    marks = list(zip(sorted(at for at, _ in notes), sorted(revision for _, revision in notes), strict=True))
    for at, revision in marks:
        history.add(at, revision)
    assert history.revision_before(time) == max((revision for at, revision in marks if at <= time), default=0)
    assert history.revision_before(time) == 0
