"""One archive with a wheel of this repository and all that it needs, for one kind of host; made if it is not there.

Prints a JSON object: `name` (release and digest of the source), `archive` (its path), `changed`. What it was made of
names it, so a changed source makes another one, and an unchanged one none. Exit status 1 and a line on standard error
if pip cannot build or fetch a wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: What the wheel is made of (pyproject.toml, tool.hatch.build).
PARTS = ("pyproject.toml", "README.md", "LICENSE", "swarmlet", "agent", "manager")
#: glibc that a wheel may need, at most: Debian 12 has 2.36, Ubuntu 22.04 has 2.35, RHEL 9 has 2.34 (PEP 600).
GLIBC = ("2_34", "2_28", "2_17")


def source_files(source: Path) -> Iterator[Path]:
    for part in PARTS:
        path = source / part
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def name_of(source: Path) -> str:
    """The release and what distinguishes this source from others of it: "0.1.0-1a2b3c4d5e"."""
    digest = hashlib.sha256()
    for file in source_files(source):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(source)} {content}\n".encode())
    found = re.search(r'RELEASE = "([^"]+)"', (source / "swarmlet/release.py").read_text())
    if found is None:
        sys.exit(f"wheelhouse: {source}/swarmlet/release.py names no release")
    return f"{found[1]}-{digest.hexdigest()[:10]}"


def pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", *args, "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        sys.exit(f"wheelhouse: pip {args[0]}: " + "\n".join(errors or [done.stderr.strip()]))


def fill(folder: Path, source: Path, python: str, machine: str) -> None:
    """The wheels of one kind of host, and pip itself: hosts need neither pip nor ensurepip."""
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("swarmlet-*.whl")
    platforms = [option for glibc in GLIBC for option in ("--platform", f"manylinux_{glibc}_{machine}")]
    pip(
        "download", "--dest", str(folder), "--only-binary", ":all:", "--python-version", python,
        "--implementation", "cp", *platforms, "--platform", f"manylinux2014_{machine}", str(wheel), "pip",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="this repository")
    parser.add_argument("--folder", type=Path, required=True, help="where archives are kept")
    parser.add_argument("--python", required=True, help='Python of the hosts, "3.11"')
    parser.add_argument("--machine", required=True, help='their processor, "x86_64" or "aarch64"')
    args = parser.parse_args()
    name = name_of(args.source)
    archive = args.folder / f"swarmlet-{name}-cp{args.python.replace('.', '')}-{args.machine}.tar"
    changed = not archive.exists()
    if changed:
        args.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            wheels = Path(scratch) / "wheels"
            wheels.mkdir()
            fill(wheels, args.source, args.python, args.machine)
            partial = Path(scratch) / "archive.tar"
            with tarfile.open(partial, "w") as tar:
                for wheel in sorted(wheels.iterdir()):
                    tar.add(wheel, arcname=wheel.name)
            partial.replace(archive)
    print(json.dumps({"name": name, "archive": str(archive), "changed": changed}))


if __name__ == "__main__":
    main()
