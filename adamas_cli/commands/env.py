"""`adamas env`: the facts that a bug report needs."""

from __future__ import annotations

from adamas_cli.commands.shared import AsJson, print_json
from adamas_cli.config import config_path
from adamas_cli.folders import cache_directory
from adamas_cli.machine.versions import environment, versions
from adamas_cli.sanitize import one_line


def command(as_json: AsJson = False) -> None:
    """Print versions, devices and variables for a bug report; tokens and passwords are hidden."""
    found, variables = versions(), environment()
    path = config_path()
    folders = {
        "configuration": f"{path}" if path.exists() else f"{path} (not there)",
        "cache": str(cache_directory()),
    }
    if as_json:
        print_json({"versions": found, "folders": folders, "environment": variables})
        return
    shown = found | folders
    width = max(map(len, shown))
    for name, value in shown.items():
        print(f"{name:{width}}  {one_line(value)}")
    for name, value in variables.items():
        print(f"{name}={one_line(value)}")
