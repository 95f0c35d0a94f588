"""What the simulated hosts' agents find in their environment."""

from __future__ import annotations

from pathlib import Path

from swarmlet.local.hosts import agent_environment

CACHE = Path("/cluster/bytecode")


def test_byte_code_goes_into_the_clusters_folder_where_it_may_not_lie_beside_the_source() -> None:
    assert agent_environment({"A": "1", "PYTHONDONTWRITEBYTECODE": "1"}, CACHE) == {
        "A": "1", "PYTHONPYCACHEPREFIX": "/cluster/bytecode",
    }


def test_elsewhere_the_environment_is_the_callers() -> None:
    own = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/x"}
    for given in ({"A": "1"}, {"PYTHONDONTWRITEBYTECODE": ""}, own):
        assert agent_environment(given, CACHE) == given
