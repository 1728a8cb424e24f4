"""Import every module of an installed adamas and read the data files that it carries."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from importlib import metadata, resources

PACKAGES = ("adamas_cli", "adamas_kernels", "adamas_prompts")


def modules() -> list[str]:
    """The dotted name of every module in the three packages, without importing the leaves."""
    found = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        found += [name, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{name}."))]
    return found


def extras() -> set[str]:
    """The packages that only extras of adamas require, by import name."""
    asked = [line for line in metadata.requires("adamas") or () if "extra ==" in line]
    return {re.match(r"[\w.-]+", line)[0].lower().replace("-", "_") for line in asked}  # type: ignore[index]


def main() -> None:
    """Raise import errors, except for packages of extras; a missing data file or a top-level `kernels` fails
    an assertion.
    """
    names, without, optional = modules(), 0, extras()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in optional:
                raise
            without += 1
    assert any(f.name.endswith(".md") for f in resources.files("adamas_prompts").iterdir()), "no templates"
    assert any(f.name.endswith(".toml") for f in resources.files("adamas_cli.models").iterdir()), "no models"
    for typed in ("adamas_cli", "adamas_kernels"):
        assert resources.files(typed).joinpath("py.typed").is_file(), f"{typed} is not marked as typed"
    assert importlib.util.find_spec("kernels") is None, "adamas must not install a package named kernels"
    print(f"{len(names) - without} modules import, {without} need an extra")


if __name__ == "__main__":
    main()
