"""The benchmarks: `./dev bench [NAME ...]`. Every figure is a ratio against a floor or a peer of the same run.

Names: run, streams, service, memory, failover, reach, build, managers (on a three-node cluster of their own), images
(on one node), store, scheduler, network, names, fanout, dataplane, overlay (in namespaces of their own), http.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

NAMES = (
    "scheduler", "store", "network", "names", "fanout", "dataplane", "overlay", "run", "streams", "service", "memory",
    "images", "build", "http", "failover", "reach", "managers",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which; all without")
    parser.add_argument("--out", type=Path, help="append one JSON line per figure to this file")
    args = parser.parse_args()
    failed = []
    for name in args.names or NAMES:
        print(f"\n== {name}", flush=True)
        try:
            figures = importlib.import_module(f"benchmarks.{name}").measure()
        except Exception as err:  # one benchmark's trouble must not hide the others' figures
            print(f"{name} failed: {type(err).__name__}: {err}", file=sys.stderr)
            failed.append(name)
            continue
        for figure in figures:
            print(figure, flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(figure.as_dict()) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
