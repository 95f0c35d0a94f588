"""The process of `keymaker.py`: `python -m swarmlet_agent.keymaker_process request|ways`, msgpack in and out."""

from __future__ import annotations

import sys

import msgspec

from swarmlet.issuing import new_request
from swarmlet_agent.net.wireguard.keys import new_keys, with_public


def main() -> None:
    """request: (CSR, key). ways: for each private key read, both halves; for each nil, new ones."""
    made: object
    match sys.argv[1:]:
        case ["request"]:
            made = new_request()
        case ["ways"]:
            wanted = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[bytes | None])
            made = [new_keys() if private is None else with_public(private) for private in wanted]
        case other:
            sys.exit(f"unknown order {other}")
    sys.stdout.buffer.write(msgspec.msgpack.encode(made))


if __name__ == "__main__":
    main()
