from __future__ import annotations

DOCUMENTATION = r"""
name: nodes
short_description: The nodes of a cluster
description:
  - Asks a manager for the cluster's nodes, and puts each into groups by role (C(managers), C(workers)), availability
    (C(availability_drain)), state (C(state_ready)) and label (C(label_disk_ssd)).
  - Its configuration is a YAML file whose name ends in C(swarmlet.yml) or C(swarmlet.yaml).
author: The Swarmlet authors
extends_documentation_fragment:
  - constructed
  - swarmlet.cluster.manager
options:
  plugin:
    description: Marks the file as this plugin's.
    type: str
    required: true
    choices: [swarmlet.cluster.nodes]
  docker_host:
    description: How a manager is reached, C(unix:///path) or C(tcp://host:port).
    type: str
    default: unix:///run/swarmlet/manager.sock
    env:
      - name: DOCKER_HOST
"""

EXAMPLES = r"""
# cluster.swarmlet.yml: ansible-inventory -i cluster.swarmlet.yml --graph
plugin: swarmlet.cluster.nodes
docker_host: unix:///run/swarmlet/manager.sock
keyed_groups:
  - key: swarmlet_node.Description.Platform.Architecture
    prefix: arch
"""

from typing import Any

from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible_collections.swarmlet.cluster.plugins.module_utils.engine_api import ARGUMENTS, ApiError, connected


class InventoryModule(BaseInventoryPlugin, Constructable):
    NAME = "swarmlet.cluster.nodes"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith(("swarmlet.yml", "swarmlet.yaml"))

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            api = connected({name: self.get_option(name) for name in ARGUMENTS})
            nodes = api.get("/nodes")
        except ApiError as err:
            raise AnsibleParserError(str(err)) from err
        for node in nodes:
            self._add(node)

    def _add(self, node: dict[str, Any]) -> None:
        name = self._name_of(node)
        self.inventory.add_host(name)
        self.inventory.set_variable(name, "ansible_host", node["Status"].get("Addr") or name)
        self.inventory.set_variable(name, "swarmlet_node", node)
        for group in groups_of(node):
            self.inventory.add_group(self._sanitize_group_name(group))
            self.inventory.add_child(self._sanitize_group_name(group), name)
        strict = self.get_option("strict")
        variables = self.inventory.get_host(name).get_vars()
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)

    def _name_of(self, node: dict[str, Any]) -> str:
        """The hostname; of two nodes of one name (an old record and its host's new one) the later one's has its id."""
        hostname = str(node["Description"]["Hostname"])
        return f"{hostname}-{node['ID'][:8]}" if hostname in self.inventory.hosts else hostname


def groups_of(node: dict[str, Any]) -> list[str]:
    """role, availability, state, and one group per label: label_KEY_VALUE, or label_KEY without a value."""
    spec = node["Spec"]
    labels = [f"label_{key}_{value}" if value else f"label_{key}" for key, value in (spec.get("Labels") or {}).items()]
    return [f"{spec['Role']}s", f"availability_{spec['Availability']}", f"state_{node['Status']['State']}", *labels]
