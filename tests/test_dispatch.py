"""Which backend serves an operation, and the message where none does."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from adamas_kernels import dispatch
from adamas_kernels.contract import Backend, Facts
from adamas_kernels.dispatch import CANDIDATES, BackendError, obstacles, pick, serving
from adamas_kernels.torch.backend import TorchBackend

CPU = torch.device("cpu")


@pytest.fixture
def without(monkeypatch):
    """Make packages look uninstalled."""

    def hide(*packages):
        monkeypatch.setattr(dispatch, "_installed", lambda package: package not in packages)

    return hide


def test_every_operation_of_the_contract_has_candidates():
    operations = {
        name for name in vars(Backend) if callable(getattr(Backend, name)) and not name.startswith("_")
    }
    assert operations | {"decoder"} == set(CANDIDATES)
    for operation in operations:
        assert list(CANDIDATES[operation]) == ["triton", "cpu", "torch"]


@pytest.mark.parametrize("operation", sorted(CANDIDATES))
def test_a_candidate_has_the_operation_that_it_serves(operation):
    backend = serving(operation, Facts(CPU, packed=True))
    assert callable(getattr(backend, operation))
    assert obstacles(operation, Facts(CPU, packed=True))[backend.name] is None


def test_the_first_without_an_obstacle_serves(without):
    assert serving("decode_step", Facts(CPU)).name == "cpu"
    without("numba")
    assert serving("decode_step", Facts(CPU)).name == "torch"
    assert pick("auto", CPU) == (
        "torch",
        "the torch backend computes sparse attention "
        "(no triton: the model is on cpu, not on a GPU; no cpu: numba is not installed)",
    )
    with pytest.raises(BackendError, match="the cpu backend cannot run: numba is not installed"):
        pick("cpu", CPU)


def test_all_obstacles_are_shown_where_nobody_serves(without):
    without("numba")
    with pytest.raises(BackendError, match=r"no backend serves decoder \(no cpu: numba is not installed\)"):
        serving("decoder", Facts(CPU))


def test_no_file_of_the_kernels_imports_itself_by_way_of_others():
    package = Path(dispatch.__file__).parent
    paths = list(package.rglob("*.py"))
    files = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in paths}
    imports: dict[str, set[str]] = {}
    for module, file in files.items():
        found = [n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)]
        names = {f"{n.module}.{alias.name}" for n in found for alias in n.names} | {n.module for n in found}
        imports[module] = names & set(files)
    assert sum(map(len, imports.values())) > 100
    assert len(list(TopologicalSorter(imports).static_order())) == len(files)


def test_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="auto or one of triton, cpu, torch, not 'jax'"):
        pick("jax", CPU)


def test_what_a_prefill_depends_on():
    def why_not(name, **facts):
        return obstacles("prefill", Facts(CPU, **facts))[name]

    chunk = {"new": 8, "dim": 64, "dim_v": 64}
    half = {"dtype": torch.float16, "kept": torch.float16}
    assert why_not("cpu", dtype=torch.float64, kept=torch.float64, **chunk).startswith("queries, or keys and")
    assert why_not("cpu", dtype=torch.float32, kept=torch.float16, **chunk) is None
    assert why_not("cpu", dtype=torch.float32, kept=None, **chunk) is not None
    assert why_not("cpu", **half, **(chunk | {"new": 1})) == "it is one token"
    assert why_not("triton", **half, **chunk) == "the model is on cpu, not on a GPU"
    assert why_not("torch", **chunk) is None
    facts = Facts(torch.device("mps"), torch.float32, torch.float32, **chunk)
    assert obstacles("prefill", facts)["cpu"] == "the model is on mps"


def test_what_a_product_depends_on():
    assert serving("linear", Facts(CPU, packed=True)).name == "cpu"
    assert serving("linear", Facts(CPU)).name == "torch"
    assert obstacles("linear", Facts(CPU))["cpu"] == "the weights are not packed"


def test_facts_are_those_of_the_tensors():
    queries, keys = torch.zeros(1, 4, 7, 64), torch.zeros(1, 2, 9, 64)
    assert Facts.of(queries, keys, keys[..., :48]) == Facts(CPU, torch.float32, torch.float32, 7, 64, 48)
    assert Facts.of(queries, keys.half(), keys).kept is None
    assert not Facts.of(queries, keys.transpose(2, 3), keys).rows


def test_a_weight_in_blocks_gives_the_same_products_by_every_backend():
    torch.manual_seed(0)
    from adamas_kernels.cpu import CpuBackend
    from adamas_kernels.cpu.backend import FEW_ROWS

    cpu = CpuBackend()
    packed, bias = cpu.quantize(torch.randn(70, 90)), torch.randn(70)
    for rows in (1, 3, 9):
        x = torch.randn(2, rows, 90)
        expected = TorchBackend().linear(x, packed, bias)
        assert expected.shape == (2, rows, 70)
        found = cpu.linear(x, packed, bias)
        assert (found - expected).norm() < (0.02 if 2 * rows <= FEW_ROWS else 1e-5) * expected.norm()
