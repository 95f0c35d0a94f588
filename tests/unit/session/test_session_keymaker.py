"""Keys from a process of a moment: they are sound, and the agent has no cryptographic library afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography import x509

from swarmlet.errors import Internal
from swarmlet_agent.keymaker import new_request, way_keys
from swarmlet_agent.net.wireguard.keys import with_public

#: What takes memory and what a running agent has no use for: it would have it for as long as it lives.
NOT_LOADED = ("cryptography", "click", "rich", "grpc", "google", "swarmlet_manager")


async def test_a_request_is_signed_by_the_key_that_comes_with_it() -> None:
    csr, key = await new_request()

    assert x509.load_pem_x509_csr(csr.encode()).is_signature_valid
    assert key.startswith("-----BEGIN PRIVATE KEY-----\n")


async def test_keys_of_ways_are_completed_and_made_anew() -> None:
    first, second = await way_keys([], new=2)
    again = await way_keys([second.private, first.private], new=1)

    assert again[:2] == [second, first]
    assert again[2] not in (first, second)
    assert [with_public(keys.private) for keys in again] == again


async def test_no_keys_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere")

    assert await way_keys([]) == []


async def test_a_key_that_is_none_is_an_error_that_does_not_show_it() -> None:
    with pytest.raises(Internal, match="no key could be made: ValueError") as caught:
        await way_keys([b"too short a key"])

    assert "too short" not in str(caught.value)


def test_the_agent_loads_nothing_that_it_does_not_run() -> None:
    look = "import sys, swarmlet_agent.app; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()

    assert "swarmlet_agent.session.session" in modules
    assert [name for name in modules if name.startswith(NOT_LOADED)] == []
