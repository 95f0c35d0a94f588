"""The programs that the playbooks bring: etcd's certificates, the archive of wheels, the collection's rules."""

from __future__ import annotations

import datetime
import importlib.util
import ipaddress
import json
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from fakes.pki_made import be_strict, make_pki
from hypothesis import given
from hypothesis import strategies as st

ANSIBLE = Path(__file__).parents[3] / "ansible"
CERTIFICATES = ANSIBLE / "roles/etcd/files/certificates.py"
UTILS = ANSIBLE / "collections/ansible_collections/swarmlet/cluster/plugins/module_utils"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(folder: Path, *members: str) -> bool:
    """Whether it made something."""
    argv = [sys.executable, str(CERTIFICATES), f"--folder={folder}", *(f"--member={member}" for member in members)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return bool(json.loads(done.stdout)["changed"])


def read(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())


def test_certificates_are_made_once_and_the_ca_vouches_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    assert make(folder, "one=192.0.2.1", "two=192.0.2.2")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert not make(folder, "one=192.0.2.1", "two=192.0.2.2")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    trust = PolicyBuilder().store(Store([read(folder, "ca")]))
    trust.build_server_verifier(x509.IPAddress(ipaddress.ip_address("192.0.2.1"))).verify(read(folder, "one"), [])
    purposes = read(folder, "client").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose._name for purpose in purposes] == ["clientAuth"]
    assert {path.suffix: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {".key": 0o600, ".pem": 0o644}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_member_that_moved_gets_another_certificate_and_the_others_keep_theirs(tmp_path: Path) -> None:
    make(tmp_path, "one=192.0.2.1", "two=192.0.2.2")
    kept, moved = read(tmp_path, "one"), read(tmp_path, "two")
    assert make(tmp_path, "one=192.0.2.1", "two=192.0.2.9")
    assert read(tmp_path, "one") == kept and read(tmp_path, "two") != moved


def test_a_certificate_that_is_about_to_end_is_not_good(tmp_path: Path) -> None:
    make(tmp_path, "one=192.0.2.1")
    module = load(CERTIFICATES)
    ca = read(tmp_path, "ca")
    assert module.is_good(read(tmp_path, "one"), ca, "192.0.2.1")
    module.RENEW_BEFORE = datetime.timedelta(days=900)
    assert not module.is_good(read(tmp_path, "one"), ca, "192.0.2.1")


def test_an_archive_is_named_by_what_it_is_made_of(tmp_path: Path) -> None:
    wheelhouse = load(ANSIBLE / "roles/wheelhouse/files/wheelhouse.py")
    for part in wheelhouse.PARTS:
        path = tmp_path / part
        if "." in part or part == "LICENSE":
            path.write_text(part)
        else:
            path.mkdir()
            (path / "module.py").write_text("")
    (tmp_path / "swarmlet/release.py").write_text('RELEASE = "9.8.7"\n')
    name = wheelhouse.name_of(tmp_path)
    assert name.startswith("9.8.7-")
    os.makedirs(tmp_path / "swarmlet/__pycache__")
    (tmp_path / "swarmlet/__pycache__/module.pyc").write_text("")
    (tmp_path / "tests").mkdir()
    assert wheelhouse.name_of(tmp_path) == name
    (tmp_path / "agent/module.py").write_text("changed = True\n")
    assert wheelhouse.name_of(tmp_path) != name


def load_utils(name: str, *needed: ModuleType) -> Any:
    """One of the collection's, with those it imports under the names that Ansible gives them."""
    package = "ansible_collections.swarmlet.cluster.plugins.module_utils"
    with pytest.MonkeyPatch.context() as patch:
        for module in needed:
            patch.setitem(sys.modules, f"{package}.{module.__name__}", module)
        return load(UTILS / f"{name}.py")


engine_api: Any = load_utils("engine_api")
rehearsal: Any = load_utils("rehearsal", engine_api)
labels = st.dictionaries(st.sampled_from(["disk", "zone", "rack"]), st.sampled_from(["", "a", "b"]))


@given(labels, st.none() | labels, st.booleans(), st.none() | st.sampled_from(["active", "drain"]))
def test_a_nodes_spec_changes_only_as_asked(
    there: dict[str, str], wanted: dict[str, str] | None, purge: bool, availability: str | None
) -> None:
    spec = {"Role": "worker", "Availability": "active", "Labels": there}
    changed = engine_api.availability_change(spec, availability, wanted, purge)
    assert spec["Labels"] is there and changed["Role"] == "worker"
    assert changed["Availability"] == (availability or "active")
    if wanted is None:
        assert changed["Labels"] == there
    else:
        assert {key: changed["Labels"][key] for key in wanted} == wanted
        assert set(changed["Labels"]) == set(wanted) if purge else set(changed["Labels"]) == set(wanted) | set(there)
    assert engine_api.availability_change(changed, availability, wanted, purge) == changed


def test_tasks_that_have_ended_do_not_keep_a_node_busy() -> None:
    states = ("running", "shutdown", "failed", "preparing", "new")
    tasks = [{"ID": state, "Status": {"State": state}} for state in states]
    assert engine_api.busy_tasks(tasks) == ["running", "preparing"]


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(engine_api.ApiError, match=r"unix:///path or tcp://host:port is expected"):
        engine_api.EngineApi("ssh://host")
    with pytest.raises(engine_api.ApiError, match="does not answer"):
        engine_api.EngineApi("unix:///nowhere/manager.sock").get("/nodes")


def test_a_managers_certificates_are_those_that_dockers_clients_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_strict(monkeypatch)
    make_pki(tmp_path)
    api = engine_api.EngineApi("tcp://127.0.0.1:2376", ca_path=str(tmp_path / "ca.pem"))
    assert not api._tls.verify_flags & ssl.VERIFY_X509_STRICT


def test_every_variable_has_a_type_and_a_default() -> None:
    role = ANSIBLE / "roles/swarmlet"
    named = re.compile(r"^ *(swarmlet_\w+):", re.MULTILINE)
    assert named.findall((role / "meta/argument_specs.yml").read_text()) == named.findall(
        (role / "defaults/main.yml").read_text()
    )


leaves = st.none() | st.booleans() | st.integers(-1, 3) | st.text("ab", max_size=2)
specs = st.dictionaries(
    st.sampled_from(["Name", "Replicas", "Init", "Mode"]),
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("Order"), inner)),
)


@given(specs)
def test_what_says_nothing_may_be_there_or_not(spec: dict[str, Any]) -> None:
    tidy = rehearsal.tidied(spec)
    assert rehearsal.tidied(tidy) == tidy
    saying_nothing = {"Hosts": [], "Isolation": "default", "TTY": False, "Privileges": {"A": None}}
    assert rehearsal.tidied({**spec, **saying_nothing}) == tidy
    assert rehearsal.tidied({**spec, "Hosts": ["a"]}) != tidy


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"Replicas": 0}, {}), ({"Init": False}, {}), ({"Mode": "dnsrr"}, {}), ({"Parallelism": 0}, {}),
        ({"Args": ["a", "b"]}, {"Args": ["b", "a"]}),
    ],
)
def test_what_says_something_differs_from_what_does_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert rehearsal.tidied(one) != rehearsal.tidied(other)


def service_with(*environment: str) -> dict[str, Any]:
    return {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "busybox", "Env": list(environment)}}}


def test_values_that_may_be_secret_are_not_shown() -> None:
    before, after = service_with("A=1", "WORD=secret"), service_with("A=1", "WORD=other")
    for spec, beside in ((before, after), (after, before)):
        shown = rehearsal.told(spec, beside)["TaskTemplate"]["ContainerSpec"]
        assert shown == {"Image": "busybox", "Env": ["A=(hidden)", "WORD=(hidden, differs)"]}
    assert before == service_with("A=1", "WORD=secret")
    assert rehearsal.told({"Name": "word", "Data": "c2VjcmV0"}, {}) == {"Name": "word"}
