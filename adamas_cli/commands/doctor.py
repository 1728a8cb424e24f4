"""`adamas doctor`: what this machine can do, and what prevents adamas from working."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import typer

from adamas_cli.commands.checks import Check, machine_checks
from adamas_cli.commands.options import setting_names
from adamas_cli.commands.shared import AsJson, print_json, told
from adamas_cli.config import read_config
from adamas_cli.errors import AdamasError
from adamas_cli.models.aliases import aliases
from adamas_cli.models.default import default_name
from adamas_cli.models.folder import missing
from adamas_cli.models.inventory import find
from adamas_cli.planning.fitting import Fit, best, fits
from adamas_cli.sanitize import one_line
from adamas_cli.terminal.spelling import spelled


def command(as_json: AsJson = False) -> None:
    """Check this machine and say how to fix what is wrong; exit with 1 if anything is."""
    checks: list[Check] = []
    models = list(fits())
    for look in [*machine_checks(setting_names()), lambda: _default_model(models)]:
        found = look()
        checks.append(replace(found, advice=spelled(found.advice)))
        if not as_json:
            print(_line(checks[-1]), flush=True)
    wrong = [check for check in checks if check.state == "wrong"]
    better = best()
    if as_json:
        shown = {"ok": not wrong, "checks": list(map(asdict, checks)), "models": list(map(asdict, models))}
        shown["recommended"] = better.name if better is not None else None
        print_json(shown)
    else:
        print("", *_table(models), *_better(better), "", sep="\n")
        for check in wrong:
            print(f"{check.name}: {one_line(check.found)}. {one_line(check.advice)}")
        if not wrong:
            print("Everything works.")
    if wrong:
        raise typer.Exit(AdamasError.exit_code)


def _default_model(models: list[Fit]) -> Check:
    try:
        read_config(setting_names())
        name = default_name()
    except AdamasError:  # reported by the configuration check
        return Check("default model", "note", "unknown until the configuration is correct")
    fit = next((fit for fit in models if fit.name == name), None)
    if fit is None:
        return _other_model(name)
    if not fit.present:
        advice = f"Fetch it, {aliases()[name].bytes / 1e6:,.0f} MB: adamas models pull {name}"
        return Check("default model", "wrong", f"{name} is not on this machine yet", advice)
    if not fit.largest:
        advice = "Choose a smaller one: adamas models default NAME"
        return Check("default model", "wrong", f"there is no memory for {name}", advice)
    return Check("default model", "ok", f"{name} is here")


def _other_model(name: str) -> Check:
    """A model without a short name: a folder, a file, or one from the hub."""
    path = Path(name).expanduser()
    advice = "Choose another one: adamas models default NAME"
    if path.is_dir():
        lack = missing(path)
        if lack is not None:
            return Check("default model", "wrong", f"{name} {lack}", advice)
    elif not path.is_file() and find(name) is None:
        if "/" in name and path.suffix != ".gguf":
            advice = f"Fetch it: adamas models pull {name}"
        return Check("default model", "wrong", f"{name} is not on this machine", advice)
    return Check("default model", "ok", f"{name} is here")


def _line(check: Check) -> str:
    found = one_line(check.found)
    if check.state == "note" and check.advice:
        found += f". {one_line(check.advice)}"
    return f"{check.state:5}  {check.name:15}  {found}"


def _better(better: Fit | None) -> list[str]:
    if better is None:
        return []
    return [f"For long documents: {better.name}. `adamas models recommended` lists others."]


def _table(models: list[Fit]) -> list[str]:
    rows = [("MODEL", "HERE", "CONTEXT", "MEMORY", "FITS")]
    for fit in models:
        rows.append(
            (
                fit.name,
                "yes" if fit.present else "no",
                f"{fit.context:,}",
                f"{fit.needed / 1e9:.1f} GB",
                told(fit),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        f"{name:{widths[0]}}  {here:{widths[1]}}  {context:>{widths[2]}}  {needed:>{widths[3]}}  {fit}"
        for name, here, context, needed, fit in rows
    ]
