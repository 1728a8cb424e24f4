"""README.md and the pages of docs/ against the program. docs/development.md describes the conventions that
make a page testable.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

import adamas_cli
from adamas_cli import errors
from adamas_cli.cli import run
from adamas_cli.commands import failures

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SECTIONS = ["Install", "Examples", "How fast", "How good", "Why not…", "Documentation", "Licence"]
FRONT_LINES, FRONT_COLUMNS = 150, 100  # limits of a front page, except for tables and commands
MANUAL = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
FIGURES = {"performance.md", "accuracy.md"}  # these also show flags of other programs and of older versions


@dataclass(frozen=True)
class Command:
    """One `$` line of a console block, with its place in the page."""

    text: str
    page: Path
    line: int
    runs: bool  # the block is marked `console run`

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def programs(self) -> list[list[str]]:
        """The words of each program that the line starts, split at pipes and other shell operators."""
        words = shlex.shlex(self.text, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        programs: list[list[str]] = [[]]
        for word in words:
            if set(word) <= set("|&;"):
                programs.append([])
            else:
                programs[-1].append(word)
        return programs

    def of(self, name: str) -> list[list[str]]:
        """The arguments of each call of the program `name` on the line."""
        return [words[1:] for words in self.programs() if words and Path(words[0]).name == name]


def commands(page: Path) -> list[Command]:
    """The commands of the page's console blocks, in order."""
    found = []
    block: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            block = line.removeprefix("```") if block is None else None
        elif block in ("console", "console run", "console answers") and line.startswith("$ "):
            found.append(Command(line.removeprefix("$ "), page, number, block == "console run"))
    return found


COMMANDS = [command for page in PAGES for command in commands(page)]
ADAMAS = [command for command in COMMANDS if command.of("adamas")]


@cache
def help_of(*subcommand: str) -> str:
    """The whole help of a command, without colour and wide enough for every flag."""
    short = printed_help(*subcommand, "--help")
    return printed_help(*subcommand, "--help-all") if "--help-all" in short else short


def printed_help(*arguments: str, columns: int = 200) -> str:
    """What a command prints in this process, which spares the start of one for each of them."""
    plain = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with mock.patch.dict(os.environ, plain), redirect_stdout(out):
        code = run(arguments)
    out.seek(0)
    shown = out.read()
    assert code == 0, f"adamas {' '.join(arguments)}: {shown}"
    return shown


def flags_in(text: str) -> set[str]:
    """The flags named in a text: `-m`, `--model`; not negative numbers or a lone dash."""
    return set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*|-[a-zA-Z0-9])(?![\w-])", text))


def has_subcommands(help_text: str) -> bool:
    """Whether the usage line takes a command."""
    return re.search(r"Usage: .*\bCOMMAND\b", help_text) is not None


def split_subcommand(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words that name the (sub)command, and its arguments."""
    subcommand: list[str] = []
    rest = list(arguments)
    while rest and not rest[0].startswith("-") and has_subcommands(help_of(*subcommand)):
        subcommand.append(rest.pop(0))
    return subcommand, rest


@cache
def all_flags() -> frozenset[str]:
    """Every flag of every command, from the help texts."""
    flags: set[str] = set()
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        subcommand = waiting.pop()
        text = help_of(*subcommand)
        flags |= flags_in(text)
        if has_subcommands(text):
            listed = text[text.index("Commands") :]
            waiting += [(*subcommand, name) for name in re.findall(r"^│ ([a-z]+)\b", listed, re.MULTILINE)]
    return frozenset(flags)


def section(page: str, title: str) -> str:
    """The text of a section of a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's body."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code_in(text: str) -> list[str]:
    """The inline code of a text, without code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def test_the_readme_has_its_sections_in_order() -> None:
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == SECTIONS


def test_the_readme_is_a_front_page() -> None:
    lines = README.splitlines()
    assert len(lines) <= FRONT_LINES
    text = [line for line in lines if not line.startswith(("|", "$ "))]
    assert [line for line in text if len(line) > FRONT_COLUMNS] == []


def test_the_readme_links_each_page_of_the_manual() -> None:
    linked = {ROOT / target for target in re.findall(r"\]\(([^)#\s]+)", README)}
    assert [page.name for page in MANUAL[1:] if page not in linked] == []


@pytest.mark.parametrize("command", ADAMAS, ids=str)
def test_each_command_line_names_a_command_and_flags_that_exist(command: Command) -> None:
    for arguments in command.of("adamas"):
        subcommand, rest = split_subcommand(arguments)
        given = {word.split("=", 1)[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
        assert not given - flags_in(help_of(*subcommand)), command.text


def test_each_command_has_an_example() -> None:
    """Nobody finds a command that the manual never calls."""
    listed = re.findall(r"^│ ([a-z]+)\b", help_of()[help_of().index("Commands") :], re.MULTILINE)
    shown = {arguments[0] for command in ADAMAS for arguments in command.of("adamas") if arguments}
    assert listed
    assert not set(listed) - shown


@pytest.mark.parametrize(
    "page", [page for page in MANUAL if page.name not in FIGURES], ids=lambda page: page.name
)
def test_each_flag_in_the_text_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    flags = {flag for code in code_in(text) if code.startswith("-") for flag in flags_in(code)}
    assert not flags - all_flags()


def test_each_make_command_names_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {words[0] for command in COMMANDS for words in command.of("make")}
    named |= {
        code.split()[1] for page in PAGES for code in code_in(page.read_text()) if code.startswith("make ")
    }
    assert {"ask", "test"} <= named
    assert not named - targets


def test_the_manual_marks_commands_to_run() -> None:
    assert [command for command in ADAMAS if command.runs]


@pytest.fixture(scope="module")
def roomy_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context for a whole page, which is long at one token per byte."""
    model = tmp_path_factory.mktemp("docs") / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 17}))
    return model


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.runs], ids=str)
def test_each_command_marked_to_run_succeeds(command: Command, roomy_model: Path, tmp_path: Path) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text("max_tokens = 8\n")
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "ADAMAS_MODEL": str(roomy_model),
        "ADAMAS_CONFIG": str(settings),
        "ADAMAS_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.text],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_exit_codes_are_those_of_the_program() -> None:
    kinds = [
        kind for module in (errors, failures) for kind in vars(module).values() if isinstance(kind, type)
    ]
    raised = {kind.exit_code: kind.kind for kind in kinds if issubclass(kind, errors.AdamasError)}
    documented = {int(code): kind.strip("`") for code, kind, _ in rows(section("scripting.md", "Exit codes"))}
    assert documented == {0: "", **raised}
    assert raised[errors.INTERRUPTED] == "interrupted"


def pictured_paths(picture: str) -> set[Path]:
    """The paths that a picture of the tree names. Several may share a line; indentation tells the folder."""
    above: dict[int, Path] = {}
    found = set()
    for line in picture.splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.match(r"\s*((?:[\w./-]+(?: (?=[\w/]+/))?)+)", line)
        assert names, line
        folder = next((above[depth] for depth in sorted(above, reverse=True) if depth < indent), ROOT)
        paths = [folder / name for name in names[1].split()]
        above = {depth: path for depth, path in above.items() if depth < indent} | {indent: paths[0]}
        found.update(paths)
    return found


def picture_of(page: Path, heading: str) -> set[Path]:
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n(.*?)```", text[text.index(heading) :], re.DOTALL)[:1]
    return pictured_paths(block)


def folders() -> set[Path]:
    """The packages of the project."""
    files = {path for folder in ("adamas_cli", "kernels") for path in (ROOT / folder).rglob("__init__.py")}
    return {path.parent for path in files}


def test_the_picture_names_only_what_exists() -> None:
    assert [str(path) for path in picture_of(ARCHITECTURE, "# Architecture") if not path.exists()] == []


def test_the_picture_names_every_folder() -> None:
    assert sorted(map(str, folders() - picture_of(ARCHITECTURE, "# Architecture"))) == []


def test_every_module_says_what_it_holds() -> None:
    modules = [path for folder in ("adamas_cli", "kernels") for path in (ROOT / folder).rglob("*.py")]
    silent = [path for path in modules if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


def test_the_supported_versions_are_those_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [line.split(";")[0] for line in project["dependencies"]]
    declared.append(f"Python{project['requires-python']}")
    text = section("models.md", "Supported models and versions")
    for name in ("Python", "torch", "triton", "transformers"):
        (line,) = [line for line in declared if re.match(rf"{name}\b", line)]
        assert f"{name} >= {line.split('>=')[1]}" in text


def test_the_built_in_names_are_those_of_the_table_of_models() -> None:
    table = tomllib.loads((ROOT / "adamas_cli" / "models" / "models.toml").read_text(encoding="utf-8"))
    text = section("models.md", "Supported models and versions")
    assert [name for name in table["models"] if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(adamas_cli.__version__)}\b", changelog, re.MULTILINE)


def test_the_plots_show_the_figures_of_the_tables(tmp_path: Path) -> None:
    draw_plots = runpy.run_path(str(ROOT / "docs" / "draw_plots.py"))
    draw_plots["main"](str(tmp_path))
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert len(drawn) == len(draw_plots["PLOTS"])
    kept = {name: (ROOT / "docs" / "plots" / name).read_text(encoding="utf-8") for name in drawn}
    assert [name for name in drawn if drawn[name] != kept[name]] == []  # if not, run docs/draw_plots.py
