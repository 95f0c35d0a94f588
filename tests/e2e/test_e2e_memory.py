"""What running agents carry: libraries that only joining needs are with none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_cluster import Cluster


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_agent_that_has_joined_a_cluster_has_no_cryptographic_library(cluster: Cluster, number: int) -> None:
    maps = Path(f"/proc/{cluster.pid(number, 'swarmlet-agent')}/maps").read_text()

    assert "/msgspec/" in maps  # as extension modules are seen there
    assert "/cryptography/" not in maps
    assert "/grpc/" not in maps
