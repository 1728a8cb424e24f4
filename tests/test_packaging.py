"""The installation: the wheel, both ways to start the program, its start-up, and the `kernels` trap."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import adamas_cli

ROOT = Path(__file__).parents[1]
SOURCES = {
    "adamas_cli": "adamas_cli",
    "adamas_kernels": "kernels/adamas_kernels",
    "adamas_prompts": "prompts",
}
MOST_MODULES = {"--version": 200, "--help": 360, "ask --help": 552}  # up to thirty to spare
FOR_THE_MODEL = ("torch", "transformers", "numpy")


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run this interpreter, by default in the repository root; its failure fails the test."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done


def installed_files() -> dict[str, Path]:
    """The files to be installed, by installed path: modules and data files of the three source folders."""
    return {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}": path
        for name, folder in SOURCES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def build(kind: str, source: Path, into: Path) -> Path:
    """Build an sdist or a wheel of `source` with the project's build backend, in its own process."""
    into.mkdir(exist_ok=True)
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    python("-c", script, str(into), cwd=source)
    return next(into.iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree: builds neither write into the checkout nor find files of earlier builds."""
    copy = tmp_path_factory.mktemp("packaging") / "source tree"
    for folder in ("adamas_cli", "kernels", "prompts", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("wheel", source, source.parent / "wheel")


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == set(installed_files())
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_sdist_is_enough_to_build_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source, tmp_path / "sdist")
    unpacked = tmp_path / "unpacked"
    python("-m", "tarfile", "-e", str(sdist), str(unpacked))
    rebuilt = build("wheel", next(unpacked.iterdir()), tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(rebuilt) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "adamas_cli"], [str(Path(sys.executable).with_name("adamas"))]],
    ids=["module", "script"],
)
def test_both_ways_to_start_tell_the_version(command: list[str]) -> None:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert adamas_cli.__version__ in done.stdout


@pytest.mark.parametrize(("arguments", "most"), MOST_MODULES.items())
def test_a_start_loads_few_modules(arguments: str, most: int) -> None:
    """Counts modules, not seconds: a busy machine must not fail it, and a fast one must not hide a module."""
    script = (
        "import sys; from adamas_cli.cli import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    assert int(python("-c", script, *arguments.split()).stderr) <= most


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_that_only_a_model_needs(arguments: list[str]) -> None:
    script = (
        "import sys, json; from adamas_cli.cli import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "json.dump(sorted({m.split('.')[0] for m in sys.modules}), sys.stderr)"
    )
    loaded = json.loads(python("-c", script, *arguments).stderr)
    assert "adamas_cli" in loaded
    assert not set(loaded) & set(FOR_THE_MODEL)


def test_no_package_named_kernels_can_be_imported_from_the_checkout() -> None:
    """If a `kernels/__init__.py` of ours can be found, no transformers model class imports."""
    script = "from importlib.util import find_spec; s = find_spec('kernels'); print(s.origin if s else None)"
    origin = python("-c", script).stdout.strip()
    assert origin == "None" or "site-packages" in Path(origin).parts


def test_a_model_class_still_imports_beside_hugging_faces_kernels(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("def __getattr__(name):\n    return type(name, (), {})\n")
    information = tmp_path / "kernels-99.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 99.0\n")
    script = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        "import adamas_cli, adamas_kernels, kernels\n"
        "from transformers import LlamaForCausalLM\n"
        "print(kernels.__file__)"
    )
    assert python("-c", script).stdout.strip() == str(package / "__init__.py")


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.name)
def test_the_kernels_stand_alone(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module.split(".")[0])
    assert not imported & {"transformers", "adamas_cli", "adamas_prompts"}


def pins() -> dict[str, str]:
    """The pinned version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if line and not line.startswith("#"))
    }


NOT_INSTALLED = {
    "bnb",
    "browser",
    "cluster",
    "torchao",
    "compressed-tensors",
}  # extras that this suite does not need, and that are not installed


def requirements() -> list[Requirement]:
    """The requirements of pyproject.toml on this machine, including test and check tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(
            line
            for name, extra in project["optional-dependencies"].items()
            for line in extra
            if name not in NOT_INSTALLED
        ),
    ]
    return [Requirement(line) for line in lines]


def test_the_tested_versions_lie_in_the_declared_ranges() -> None:
    for requirement in requirements():
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), requirement


def test_what_the_tested_versions_require_has_a_tested_version_too() -> None:
    """Follows the dependencies of each installed pin; torch pins CUDA's own packages."""
    pinned, seen = pins(), set()
    waiting = requirements()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if name in seen or not wanted or re.match(r"(nvidia|cuda)-", name):
            continue
        seen.add(name)
        if metadata.version(name).split("+")[0] == pinned.get(name):
            waiting += [Requirement(line) for line in metadata.requires(name) or []]
    assert not seen - pinned.keys() - {"pip"}  # llm requires it, and every environment has it
