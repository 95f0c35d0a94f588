"""Everything in etcd is read once, in pages that weigh little wherever large values begin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmlet_manager.store.keys import Keys
from swarmlet_manager.store.kv import PutKey, RangeResult
from swarmlet_manager.store.memory import MemoryEtcd
from swarmlet_manager.store.pages import FIRST_KEYS, PAGE_BYTES, PAGE_KEYS, Pages

KEYS = Keys(b"/s/")
NAMES = st.sampled_from(
    ["cluster", "leader", "schema", "later", "zz/1", *(
        f"{kind}/{n}" for kind in ("configs", "leases", "nodes", "secrets", "services", "tasks/s1") for n in range(40)
    )]
)  # fmt: skip


def filled(sizes: dict[str, int]) -> MemoryEtcd:
    etcd = MemoryEtcd()
    for name, size in sizes.items():
        etcd.txn((), (PutKey(KEYS.prefix + name.encode(), bytes(size)),), ())
    etcd.txn((), (PutKey(b"/r", b"another's"), PutKey(b"/t", b"another's")), ())
    return etcd


def read(etcd: MemoryEtcd) -> list[RangeResult]:
    pages, found = Pages(KEYS.sections()), []
    while (wanted := pages.wanted()) is not None:
        found.append(etcd.read(wanted.start, wanted.end, 0, wanted.limit))
        pages.arrived(found[-1])
    return found


def weight(page: RangeResult) -> int:
    return sum(len(kv.value) for kv in page.kvs)


@given(st.dictionaries(NAMES, st.sampled_from([1, 100, 50_000]), max_size=60))
def test_every_key_is_read_exactly_once_in_order(sizes: dict[str, int]) -> None:
    etcd = filled(sizes)
    everything = etcd.read(KEYS.prefix, KEYS.end).kvs

    assert tuple(kv for page in read(etcd) for kv in page.kvs) == everything


def test_large_values_come_a_few_at_a_time_behind_any_number_of_small_ones() -> None:
    megabyte = 1_000_000
    small = {f"nodes/{n:04}": 100 for n in range(1000)}
    large = {f"{kind}/{n:04}": megabyte for kind in ("configs", "secrets") for n in range(30)}
    pages = read(filled(small | large))

    assert max(map(weight, pages)) <= FIRST_KEYS * megabyte  # nothing was known of their kind yet
    assert sum(weight(page) > PAGE_BYTES for page in pages) <= 2


def test_small_values_come_in_few_pages() -> None:
    assert len(read(filled({f"leases/{n:05}": 100 for n in range(10_000)}))) <= 10_000 / PAGE_KEYS + 5 + 8
