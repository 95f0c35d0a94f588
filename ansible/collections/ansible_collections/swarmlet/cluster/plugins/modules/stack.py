#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
module: stack
short_description: A stack of the cluster, with a plan of what would change
description:
  - Deploys a compose file as C(docker stack deploy) does, or removes a stack.
  - Unlike C(community.docker.docker_stack) it has a check mode, which tells each service, network, secret and config
    that would be made, changed or removed; it shows their differences; and what would not change is not touched.
  - The values of environment variables and the content of secrets and configs are never shown.
author: The Swarmlet authors
extends_documentation_fragment: [swarmlet.cluster.manager]
requirements:
  - The C(docker) command.
options:
  name:
    description: The stack's name.
    type: str
    required: true
  compose:
    description:
      - Paths of compose files on the host that this runs on, or their content. Later ones add to earlier ones.
      - Paths inside of one that is given by its content must be absolute.
      - Required with O(state=present).
    type: list
    elements: raw
  state:
    description: Whether the stack is to be there.
    type: str
    choices: [present, absent]
    default: present
  prune:
    description: Remove the stack's services that O(compose) does not have.
    type: bool
    default: false
  resolve_image:
    description: When the registry is asked for an image's digest.
    type: str
    choices: [always, changed, never]
    default: always
  with_registry_auth:
    description: Give the nodes the credentials that the C(docker) command has for the registry.
    type: bool
    default: false
  wait:
    description: Wait until as many tasks run as are wanted, and no service is being updated.
    type: bool
    default: false
  wait_timeout:
    description: How long to wait, in seconds.
    type: int
    default: 300
  docker_cli:
    description: The C(docker) command.
    type: str
    default: docker
attributes:
  check_mode:
    description: Tells what it would change.
    support: full
  diff_mode:
    description: Shows the specs of what changes, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Deploy a stack
  swarmlet.cluster.stack:
    name: shop
    compose: [/srv/shop/compose.yml]
    prune: true
    wait: true
  delegate_to: manager-1

- name: Deploy one that the playbook has
  swarmlet.cluster.stack:
    name: web
    compose:
      - services:
          web:
            image: nginx:alpine
            deploy: {replicas: 3}
  delegate_to: manager-1
"""

RETURN = r"""
plan:
  description: What changes, or would change in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{action: update, kind: service, name: shop_web}]
waited:
  description: How long it took until all tasks ran, in seconds.
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
    connected,
)
from ansible_collections.swarmlet.cluster.plugins.module_utils.rehearsal import Rehearsal, Step, tidied, told

LOOK_AGAIN_S = 0.5
#: States of updates that go on (Engine API UpdateStatus), and of those that have failed.
_UPDATING = frozenset({"updating", "rollback_started"})
_FAILED = frozenset({"paused", "rollback_paused", "rollback_completed"})


def command_of(module: AnsibleModule) -> list[str]:
    """The words of the docker command that follow the manager's address."""
    params = module.params
    if params["state"] == "absent":
        return ["stack", "rm", params["name"]]
    files = [word for part in params["compose"] for word in ("--compose-file", compose_file(module, part))]
    switches = [f"--{name.replace('_', '-')}" for name in ("prune", "with_registry_auth") if params[name]]
    resolve = f"--resolve-image={params['resolve_image']}"
    return ["stack", "deploy", "--detach=true", resolve, *switches, *files, params["name"]]


def compose_file(module: AnsibleModule, part: object) -> str:
    """Its path; content becomes a file that goes with the module."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        module.fail_json(msg=f"compose: a path or the content of a file is expected, not {type(part).__name__}")
    with open(f"{module.tmpdir}/compose-{id(part)}.json", "w", encoding="utf-8") as file:  # which is YAML, too
        json.dump(part, file)
    return file.name


def run(module: AnsibleModule, api: EngineApi, command: list[str], *, really: bool) -> list[Step]:
    """What the command changes, or would change, by kind and name: the command itself has no order."""
    with Rehearsal(api, really=really) as rehearsal:
        argv = [module.get_bin_path(module.params["docker_cli"], required=True), "-H", rehearsal.url, *command]
        # The caller's may be of another manager.
        status, _, errors = module.run_command(argv, environ_update={"DOCKER_TLS_VERIFY": "", "DOCKER_CONTEXT": ""})
    if status:
        raise ApiError(errors.strip() or f"docker {command[0]} {command[1]} ended with status {status}")
    return sorted(rehearsal.steps, key=lambda step: (step.kind, step.name))


def diff_of(steps: list[Step]) -> dict[str, dict[str, Any]]:
    return {
        "before": {f"{step.kind} {step.name}": tidied(told(step.before, step.after)) for step in steps if step.before},
        "after": {f"{step.kind} {step.name}": tidied(told(step.after, step.before)) for step in steps if step.after},
    }


def wait_until_settled(api: EngineApi, stack: str, changed: set[str], timeout_s: float) -> float:
    """changed: names of the services whose last update, if any, is of now."""
    began = time.monotonic()
    label = json.dumps({"label": [f"com.docker.stack.namespace={stack}"]})
    while True:
        services = api.get("/services", filters=label, status="true")
        for service in services:
            name, update = service["Spec"]["Name"], service.get("UpdateStatus") or {}
            if name in changed and update.get("State") in _FAILED:
                raise ApiError(f"{name}: the update is {update['State']}: {update.get('Message', '')}")
        late = [service["Spec"]["Name"] for service in services if not is_settled(service)]
        waited = time.monotonic() - began
        if not late:
            return waited
        if waited > timeout_s:
            raise ApiError(f"not all tasks run after {timeout_s:.0f} s: {', '.join(sorted(late))}")
        time.sleep(LOOK_AGAIN_S)


def is_settled(service: dict[str, Any]) -> bool:
    tasks = service.get("ServiceStatus") or {}
    if (service.get("UpdateStatus") or {}).get("State") in _UPDATING:
        return False
    return bool(tasks.get("RunningTasks", 0) >= tasks.get("DesiredTasks", 0))


def apply(module: AnsibleModule, api: EngineApi) -> dict[str, Any]:
    params = module.params
    command = command_of(module)
    # Also where it is meant: what the command finds wrong only on its way is known before anything is made.
    steps = run(module, api, command, really=False)
    if steps and not module.check_mode:
        steps = run(module, api, command, really=True)
    result: dict[str, Any] = {
        "changed": bool(steps), "diff": diff_of(steps),
        "plan": [{"action": step.action, "kind": step.kind, "name": step.name} for step in steps],
    }
    if params["wait"] and params["state"] == "present" and not module.check_mode:
        changed = {step.name for step in steps if step.kind == "service"}
        result["waited"] = wait_until_settled(api, params["name"], changed, params["wait_timeout"])
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "compose": {"type": "list", "elements": "raw"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "prune": {"type": "bool", "default": False},
            "resolve_image": {"type": "str", "choices": ["always", "changed", "never"], "default": "always"},
            "with_registry_auth": {"type": "bool", "default": False},
            "wait": {"type": "bool", "default": False},
            "wait_timeout": {"type": "int", "default": 300},
            "docker_cli": {"type": "str", "default": "docker"},
            **ARGUMENTS,
        },
        required_if=[("state", "present", ["compose"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**apply(module, connected(module.params)))
    except ApiError as err:
        module.fail_json(msg=str(err))


if __name__ == "__main__":
    main()
