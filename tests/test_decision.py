"""The engine runs what is planned from facts, for every kind of model and device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from adamas_kernels import dispatch
from conftest import ARCHITECTURES, byte_tokenizer, tiny_architecture
from test_engine import unserved
from told import raises_told

from adamas_cli.engine.attention import AttentionSettings, backends_of, decide_for
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import ModelUnavailableError, OutOfMemoryError, UsageError
from adamas_cli.machine.backends import backend_obstacles
from adamas_cli.models import ModelFiles, load
from adamas_cli.models.device import choose_dtype
from adamas_cli.models.quantization import PACKAGES, packing_obstacle
from adamas_cli.models.shape import read_shape, shape_of_config
from adamas_cli.planning.choice import AUTO_MIN_CONTEXT, PREFILL_CHUNK, budget_for
from adamas_cli.planning.decision import Backends, Decision, Machine, check_place, decide
from adamas_cli.planning.facts import config_facts, file_facts, machine_facts
from adamas_cli.planning.needs import PLANES, UNPACKED
from adamas_cli.progress import Silent
from adamas_cli.settings import (
    CacheDType,
    DecodingSettings,
    KvPlace,
    ModelSettings,
    OriginSettings,
    PromptSettings,
)
from adamas_cli.store.settings import StoreSettings

UNSERVED = "unserved"
# Tokens below and above the threshold at which a CPU decodes sparsely.
SHORT, LONG = 300, AUTO_MIN_CONTEXT["cpu"] + 900
OLD, NEW = (7, 5), (9, 0)  # compute capabilities that Triton does not support, and does


@pytest.fixture(autouse=True)
def forgets_devices() -> Iterator[None]:
    """A GPU's abilities are asked once per process; here they change."""
    dispatch._triton_on.cache_clear()
    yield
    dispatch._triton_on.cache_clear()


@pytest.fixture(scope="module", params=[*ARCHITECTURES, UNSERVED])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A tiny model of each kind."""
    directory = tmp_path_factory.mktemp(request.param)
    model = unserved() if request.param == UNSERVED else tiny_architecture(request.param)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return ModelFiles(request.param, directory, f"decided-{request.param}")


def gpu(capability: tuple[int, int]) -> Machine:
    """A GPU that does not exist."""
    backends = Backends("cuda", backend_obstacles("cuda", capability))
    packages = frozenset(package for package, _ in PACKAGES.values())
    return Machine(backends, True, packing_obstacle("cuda"), 80 * 10**9, capability, packages)


WAYS = [
    DecodingSettings(),
    DecodingSettings(attn="adamas", budget=64, dense_layers=1),
    DecodingSettings(attn="adamas", backend="torch", prefill_chunk=100),
    DecodingSettings(attn="full"),
]


@pytest.mark.parametrize(
    "loading", [ModelSettings(device="cpu"), ModelSettings(device="cpu", dtype="float32")]
)
def test_the_engine_runs_what_is_planned_on_a_cpu(
    files: ModelFiles, loading: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    model, machine = file_facts(files), machine_facts("cpu")
    loaded = load(files, **loading.loading, progress=Silent())
    assert bool(model.shape.obstacle) == (files.name == UNSERVED)
    for chosen, tokens in product(WAYS, (SHORT, LONG)):
        settings = AttentionSettings.of(chosen)
        if files.name == UNSERVED and chosen.attn == "adamas":
            with pytest.raises(ModelUnavailableError) as planned:
                decide(model, machine, loading, chosen, tokens)
            with pytest.raises(ModelUnavailableError) as run:
                Timeline(loaded, settings, context=tokens)
            assert planned.value.message == run.value.message
            continue
        decision = decide(model, machine, loading, chosen, tokens)
        timeline = Timeline(loaded, settings, context=tokens, prefill_chunk=chosen.prefill_chunk)
        attention = decision.attention
        assert decision.device == loaded.device.type
        assert decision.dtype == str(loaded.dtype).removeprefix("torch.")
        assert decision.quantization == loaded.quantization
        assert decision.packed == ("packed" in loaded.quantization)
        assert attention.kind == timeline.attention_kind
        assert attention.chunk == timeline.chunk
        assert attention.reason == timeline.backend_reason
        assert attention.backend == (timeline.sparse and timeline.sparse.backend.name)
        assert attention.budget == (timeline.sparse and timeline.sparse.settings.budget)
        if attention.sparse:
            assert (attention.budget, attention.chunk) == (
                chosen.budget or budget_for(tokens),
                chosen.prefill_chunk or PREFILL_CHUNK["cpu"],
            )


def test_auto_is_sparse_where_that_gains_and_the_model_is_served(files: ModelFiles) -> None:
    model, machine = file_facts(files), machine_facts("cpu")
    kinds = [
        decide(model, machine, ModelSettings(), DecodingSettings(), tokens).attention.kind
        for tokens in (SHORT, LONG)
    ]
    assert kinds == ["full", "full" if files.name == UNSERVED else "adamas"]


def test_a_gguf_file_takes_the_bytes_of_its_own_bits_on_a_gpu(files: ModelFiles) -> None:
    model = replace(file_facts(files), blocks=10**9)
    few = decide(model, gpu(NEW), ModelSettings(), DecodingSettings(), SHORT)
    assert (few.packed, few.bytes.weights) == (True, int(10**9 * PLANES))
    full = decide(model, gpu(NEW), ModelSettings(quantization="none"), DecodingSettings(), SHORT)
    assert (full.packed, full.bytes.weights) == (False, model.weights.bytes(2))


def test_the_buffer_that_is_planned_is_the_one_that_weights_are_unpacked_into() -> None:
    from adamas_kernels.triton import backend  # needs torch, which plans must not import

    assert backend.UNPACKED == UNPACKED


@pytest.mark.parametrize("capability", [OLD, NEW])
def test_the_engine_decides_as_is_planned_on_a_gpu(
    files: ModelFiles, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    from transformers import AutoConfig

    device, machine = torch.device("cuda"), gpu(capability)
    config = AutoConfig.from_pretrained(files.directory)
    models = file_facts(files), config_facts(config, files.directory)
    assert models[0].shape == models[1].shape == read_shape(files.directory)
    dtype = choose_dtype("auto", device)
    found = set()
    for chosen, tokens in product(WAYS, (SHORT, LONG, 10**7)):
        asked = AttentionSettings.of(chosen).asked(chosen.prefill_chunk)
        if files.name == UNSERVED and chosen.attn == "adamas":
            with pytest.raises(ModelUnavailableError):
                decide_for(shape_of_config(config), dtype, device, asked, tokens)
            with pytest.raises(ModelUnavailableError):
                decide(models[0], machine, ModelSettings(), chosen, tokens)
            continue
        run = decide_for(shape_of_config(config), dtype, device, asked, tokens)
        for model in models:
            decision = decide(model, machine, ModelSettings(), chosen, tokens)
            assert decision.attention == run
            assert (decision.dtype, decision.packed) == (str(dtype).removeprefix("torch."), False)
        found.add((run.kind, run.backend))
    fastest = "torch" if capability == OLD else "triton"
    served = {("adamas", fastest), ("adamas", "torch")}
    assert found == {("full", None)} | (set() if files.name == UNSERVED else served)


def test_the_memory_that_is_told_before_a_model_is_loaded_on_a_gpu_is_that_of_the_decision(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamas_cli.session import runtime

    small = replace(gpu(NEW), memory=10**6)
    opened = runtime.Runtime.resolve(
        ModelSettings(model=str(files.directory)),
        DecodingSettings(),
        PromptSettings(),
        StoreSettings(),
        Silent(),
        OriginSettings(sources=3 if files.name != UNSERVED else None),
    )
    chosen = DecodingSettings(attn="auto" if files.name == UNSERVED else "adamas")  # counting makes it sparse
    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(runtime, "machine_facts", lambda name: gpu(NEW))
    model = file_facts(files)
    expected = decide(model, gpu(NEW), ModelSettings(), chosen, min(LONG, model.shape.context))
    assert opened.memory(LONG) == expected.bytes
    assert expected.attention.sparse == (files.name != UNSERVED)
    monkeypatch.setattr(runtime, "machine_facts", lambda name: small)
    with raises_told(OutOfMemoryError, match=r"and cuda:0 has 0\.0 GB\. .* --quantization, .* --device cpu"):
        opened.memory(LONG)


@pytest.mark.parametrize("capability", [OLD, NEW])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_obstacles_are_those_that_the_kernels_find(
    device: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    found = backends_of(torch.device(device))
    assert list(found.obstacles.items()) == list(backend_obstacles(device, capability).items())


def test_a_backend_that_cannot_run_is_refused_by_the_plan_too(files: ModelFiles) -> None:
    chosen = DecodingSettings(attn="adamas", backend="triton")
    refusal = ModelUnavailableError if files.name == UNSERVED else UsageError
    with pytest.raises(refusal):
        decide(file_facts(files), machine_facts("cpu"), ModelSettings(), chosen, LONG)
    loading = ModelSettings(quantization="packed")
    with pytest.raises(UsageError, match="packed serves CPUs"):
        decide(file_facts(files), gpu(NEW), loading, DecodingSettings(), LONG)


@pytest.mark.parametrize("name", PACKAGES)
def test_weights_that_a_device_cannot_quantize_are_refused_by_the_plan_too(
    files: ModelFiles, name: str
) -> None:
    loading = ModelSettings(device="cpu", quantization=name)
    with pytest.raises(UsageError) as planned:
        decide(file_facts(files), machine_facts("cpu"), loading, DecodingSettings(), LONG)
    with pytest.raises(UsageError) as loaded:
        load(files, **loading.loading, progress=Silent())
    assert planned.value.message == loaded.value.message
    decision = decide(file_facts(files), gpu(NEW), loading, DecodingSettings(), LONG)
    assert decision.quantization == name
    plain = decide(file_facts(files), gpu(NEW), ModelSettings(dtype="bfloat16"), DecodingSettings(), LONG)
    assert decision.bytes.weights < plain.bytes.weights


def test_codes_are_counted_only_where_answers_are_sparse(files: ModelFiles) -> None:
    model, loading = file_facts(files), ModelSettings(dtype="float32")
    for machine in (replace(machine_facts("cpu"), memory=0), gpu(NEW)):
        full = decide(model, machine, loading, DecodingSettings(attn="full"), LONG).bytes
        auto = decide(model, machine, loading, DecodingSettings(dense_layers=0), LONG)
        assert full.codes == 0
        assert (auto.bytes.codes > 0) == auto.attention.sparse
        assert auto.bytes.cache == full.cache


def test_the_nearest_cache_that_fits_is_offered(files: ModelFiles) -> None:
    model, loading, cpu = file_facts(files), ModelSettings(dtype="float32"), machine_facts("cpu")

    def decided(memory: int, kept: CacheDType = "auto") -> Decision:
        asked = DecodingSettings(attn="full", cache_dtype=kept)
        return decide(model, replace(cpu, memory=memory), loading, asked, LONG)

    kinds: tuple[CacheDType, ...] = ("auto", "16", "int8", "int4")
    needs = {kept: decided(0, kept).bytes.total for kept in kinds}
    for memory in needs.values():
        nearest = next(kept for kept in kinds if needs[kept] <= memory)
        assert decided(memory).smaller == (None if nearest == "auto" else nearest)
    assert decided(0).smaller is None


def test_what_does_not_fit_a_gpu_is_put_into_host_memory(files: ModelFiles) -> None:
    model, loading = file_facts(files), ModelSettings(dtype="bfloat16")

    def decided(kv: KvPlace, memory: int = 10**12, host: int = 0) -> Decision:
        machine = replace(gpu(NEW), memory=memory, host=host)
        return decide(model, machine, loading, DecodingSettings(attn="full", dense_layers=1, kv=kv), 5000)

    whole = decided("gpu")
    assert whole.kv == "gpu"
    if files.name == UNSERVED:
        with pytest.raises(UsageError, match="`kv` host does not serve this model"):
            decided("host")
        assert decided("auto", 0, 10**12).kv == "gpu"
        return
    hosted = decided("host")
    assert hosted.kv == "host"
    assert hosted.bytes.host == model.shape.hosted_bytes(5000, 2, 1) > 0
    assert hosted.bytes.cache + hosted.bytes.host == whole.bytes.cache
    assert hosted.bytes.work - whole.bytes.work == 2 * model.shape.token_bytes(2) * 5000
    less, there = hosted.bytes.total, hosted.bytes.host
    assert (less < whole.bytes.total) == (there > 2 * model.shape.token_bytes(2) * 5000)
    memory = max(less, whole.bytes.total - 1)
    for room, host, expected in (
        (whole.bytes.total, there, whole),
        (memory, there, hosted if memory < whole.bytes.total else whole),
        (less - 1, there, whole),
        (memory, there - 1, whole),
    ):
        assert decided("auto", room, host).bytes == expected.bytes
    hosted.bytes.require(less, "cuda", "it", "", there)
    with pytest.raises(OutOfMemoryError, match="of host memory, and"):
        hosted.bytes.require(less, "cuda", "it", "", there - 1)


def test_only_a_gpu_has_a_memory_of_its_own() -> None:
    check_place("host", "cpu")
    check_place("gpu", "cuda")
    with pytest.raises(UsageError, match="the model is on cpu"):
        check_place("gpu", "cpu")


def test_a_decision_needs_no_torch() -> None:
    code = (
        "import sys, adamas_cli.planning.decision, adamas_cli.planning.facts; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
