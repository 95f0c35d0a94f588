#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
module: node
short_description: Availability and labels of a node, and the wait until a drained one is empty
description:
  - Sets the availability and labels of a node of the cluster.
  - Unlike C(community.docker.docker_node) it can wait until no task runs on a drained node, so that the host can be
    worked on.
author: The Swarmlet authors
extends_documentation_fragment: [swarmlet.cluster.manager]
options:
  hostname:
    description: The node's name in the cluster, or its id.
    type: str
    required: true
  availability:
    description: What the scheduler may do with the node.
    type: str
    choices: [active, pause, drain]
  labels:
    description: Labels the node must have, with these values.
    type: dict
  purge_labels:
    description: Remove the labels that O(labels) does not name.
    type: bool
    default: false
  wait:
    description: With O(availability=drain), wait until no task runs on the node.
    type: bool
    default: true
  wait_timeout:
    description: How long to wait, in seconds.
    type: int
    default: 300
attributes:
  check_mode:
    description: Tells what it would change.
    support: full
  diff_mode:
    description: Shows availability and labels before and after.
    support: full
"""

EXAMPLES = r"""
- name: Take a node out for maintenance
  swarmlet.cluster.node:
    hostname: worker-2
    availability: drain
  delegate_to: manager-1

- name: Say what its disks are
  swarmlet.cluster.node:
    hostname: worker-2
    labels: {disk: ssd}
  delegate_to: manager-1
"""

RETURN = r"""
node:
  description: The node as the manager sees it (Engine API Node), after the change.
  type: dict
  returned: success
waited:
  description: How long it took until the node was empty, in seconds.
  type: float
  returned: when it was waited for
"""

import json
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarmlet.cluster.plugins.module_utils.engine_api import (
    ARGUMENTS,
    ApiError,
    EngineApi,
    availability_change,
    busy_tasks,
    connected,
)

LOOK_AGAIN_S = 0.5


def find(api: EngineApi, name: str) -> dict[str, Any]:
    found = [node for node in api.get("/nodes") if name in (node["ID"], node["Description"]["Hostname"])]
    if len(found) != 1:
        raise ApiError(f"{'no node' if not found else f'{len(found)} nodes'} {name} in the cluster: name it by its id")
    return dict(found[0])


def wait_until_empty(api: EngineApi, ident: str, timeout_s: float) -> float:
    began = time.monotonic()
    while True:
        left = busy_tasks(api.get("/tasks", filters=json.dumps({"node": [ident]})))
        waited = time.monotonic() - began
        if not left:
            return waited
        if waited > timeout_s:
            raise ApiError(f"{len(left)} tasks still run on the node after {timeout_s:.0f} s: {', '.join(left)}")
        time.sleep(LOOK_AGAIN_S)


def apply(module: AnsibleModule, api: EngineApi) -> dict[str, Any]:
    params = module.params
    node = find(api, params["hostname"])
    wanted = availability_change(node["Spec"], params["availability"], params["labels"], params["purge_labels"])
    result: dict[str, Any] = {
        "changed": wanted != node["Spec"], "node": node, "diff": {"before": node["Spec"], "after": wanted}
    }
    if module.check_mode:
        return result
    if result["changed"]:
        api.post(f"/nodes/{node['ID']}/update", wanted, version=str(node["Version"]["Index"]))
    if params["availability"] == "drain" and params["wait"]:
        result["waited"] = wait_until_empty(api, node["ID"], params["wait_timeout"])
    result["node"] = api.get(f"/nodes/{node['ID']}")
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "hostname": {"type": "str", "required": True},
            "availability": {"type": "str", "choices": ["active", "pause", "drain"]},
            "labels": {"type": "dict"},
            "purge_labels": {"type": "bool", "default": False},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 300},
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**apply(module, connected(module.params)))
    except ApiError as err:
        module.fail_json(msg=str(err))


if __name__ == "__main__":
    main()
