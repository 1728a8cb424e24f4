"""Checks that every dependency has wheels for Linux and macOS on Arm, by what pip would download for them.

    python docs/check_wheels.py FOLDER [--python 3.11]

Downloads gigabytes into the folder and deletes each wheel after it; versions are those of constraints.txt.
Exits with 1 where one is missing. What pyproject.toml asks for on Linux alone is not looked for elsewhere.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLATFORMS = {
    "Linux": ["manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64"],
    "macOS": [
        "macosx_11_0_arm64",
        "macosx_12_0_arm64",
        "macosx_13_0_arm64",
        "macosx_14_0_arm64",
        "macosx_15_0_arm64",
    ],
}


def dependencies() -> dict[str, list[str]]:
    """The packages that adamas needs, by name, with the systems that need them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for line in project["dependencies"]:
        name = re.match(r"[\w.-]+", line)[0]
        found[name] = ["Linux"] if "sys_platform == 'linux'" in line else list(PLATFORMS)
    return found


def pinned(name: str) -> str:
    """The package with its version from constraints.txt, without a local label."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        package, _, version = line.partition("==")
        if package.lower().replace("_", "-") == name.lower().replace("_", "-"):
            return f"{name}=={version.partition('+')[0]}"
    return name


def lacks(requirement: str, platforms: list[str], python: str, folder: str) -> str:
    """Why pip finds no wheel, in one line; empty if it finds one."""
    where = [word for platform in platforms for word in ("--platform", platform)]
    with tempfile.TemporaryDirectory(dir=folder) as there:
        done = subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps",
                "--only-binary=:all:", "--python-version", python, *where, "-d", there, requirement,
            ],
            capture_output=True,
            text=True,
        )  # fmt: skip
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def main() -> None:
    """Print a line for each package and system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--python", default="3.11")
    options = parser.parse_args()
    missing = 0
    for name, systems in dependencies().items():
        for system in systems:
            reason = lacks(pinned(name), PLATFORMS[system], options.python, options.folder)
            missing += bool(reason)
            print(f"{pinned(name):32}{system:8}{reason or 'ok'}", flush=True)
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    main()
