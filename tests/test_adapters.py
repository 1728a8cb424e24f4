"""LoRA adapters: merging one gives a model whose weights are W + scale * B A.

The expected values were once checked against the library peft: logits of its merged models agree to 2e-5.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Run
from gguf_sources import build
from gguf_writing import write_source
from safetensors.torch import load_file, save_file
from test_gguf_architectures import read_back
from told import raises_told
from torch import Tensor

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models import LoadedModel, ModelFiles, load, resolve
from adamas_cli.models.adapters import Adapter
from adamas_cli.models.filling import Numbers
from adamas_cli.models.merging import Merging, in_8_bits
from adamas_cli.models.packed import Blocks
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.models.resolve import require_here
from adamas_cli.progress import Silent

RANK, ALPHA = 4, 16
Q, UP, HEAD = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head"
EMBEDDINGS = "model.embed_tokens"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))


def written(
    directory: Path, tensors: dict[str, Tensor], base: Path | str = "owner/base", **config: Any
) -> Path:
    """An adapter as PEFT writes it."""
    directory.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": str(base)}
    (directory / "adapter_config.json").write_text(json.dumps(settings | config))
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, directory / "adapter_model.safetensors")
    return directory


def pair(layer: str, outputs: int, inputs: int, rank: int = RANK) -> dict[str, Tensor]:
    """Random halves of a layer's change."""
    random = torch.Generator().manual_seed(len(layer))
    return {
        f"{layer}.lora_A.weight": torch.randn(rank, inputs, generator=random) / 8,
        f"{layer}.lora_B.weight": torch.randn(outputs, rank, generator=random) / 8,
    }


def product(tensors: dict[str, Tensor], layer: str) -> Tensor:
    return tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]


def found(model: Path | str | None, adapter: Path | str | None) -> ModelFiles:
    name = None if model is None else str(model)
    return resolve(
        name,
        device="cpu",
        offline=True,
        adapter=None if adapter is None else str(adapter),
        progress=Silent(),
    )


def merged(model: Path, adapter: Path | None, quantization: str = "none") -> LoadedModel:
    return load(
        found(model, adapter), device="cpu", dtype="float32", quantization=quantization, progress=Silent()
    )


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(torch.arange(40)[None], use_cache=False).logits


BOTH = pair(Q, 64, 64) | pair(UP, 96, 64)
SHAPED = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}}


@pytest.mark.parametrize(
    ("tensors", "config", "scales"),
    [
        (BOTH, {}, (4.0, 4.0)),
        (BOTH, {"use_rslora": True}, (8.0, 8.0)),
        (pair(Q, 64, 64, 2) | pair(UP, 96, 64), SHAPED, (8.0, 0.75)),
        ({name.replace("_A", "_A.default"): tensor for name, tensor in BOTH.items()}, {}, (4.0, 4.0)),
        ({name.removeprefix("model."): tensor for name, tensor in BOTH.items()}, {}, (4.0, 4.0)),
    ],
    ids=["plain", "rank-stabilized", "by layer", "named", "of the bare model"],
)
def test_layers_become_what_the_adapter_makes_of_them(
    tiny_model: Path,
    tmp_path: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    scales: tuple[float, float],
) -> None:
    adapter = written(tmp_path / "lora", tensors, **config)
    weights = load_file(tiny_model / "model.safetensors")
    plain = {name.replace(".default", ""): tensor for name, tensor in tensors.items()}
    for layer, scale in zip((Q, UP), scales, strict=True):
        stored = layer if f"{layer}.lora_A.weight" in plain else layer.removeprefix("model.")
        weights[f"{layer}.weight"] += scale * product(plain, stored)
    model = merged(tiny_model, adapter).model
    for name, tensor in weights.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), tensor)


def test_magnitudes_are_the_lengths_of_rows(tiny_model: Path, tmp_path: Path) -> None:
    lengths = torch.linspace(0.5, 2, 64)
    adapter = written(
        tmp_path / "dora", pair(Q, 64, 64) | {f"{Q}.lora_magnitude_vector": lengths}, use_dora=True
    )
    model = merged(tiny_model, adapter).model
    rows = model.get_parameter(f"{Q}.weight").detach()
    torch.testing.assert_close(rows.norm(dim=1), lengths)
    old = load_file(tiny_model / "model.safetensors")[f"{Q}.weight"]
    direction = old + 4 * product(pair(Q, 64, 64), Q)
    torch.testing.assert_close(rows, direction * (lengths / direction.norm(dim=1))[:, None])


def test_saved_modules_and_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    head = torch.randn(258, 64)
    halves = {"lora_embedding_A": torch.randn(RANK, 258) / 8, "lora_embedding_B": torch.randn(64, RANK) / 8}
    tensors = {f"{EMBEDDINGS}.{name}": half for name, half in halves.items()}
    adapter = written(tmp_path / "lora", tensors | {f"{HEAD}.weight": head})
    old = load_file(tiny_model / "model.safetensors")[f"{EMBEDDINGS}.weight"]
    rows = old + 4 * (halves["lora_embedding_B"] @ halves["lora_embedding_A"]).T
    for quantization in ("none", "packed"):  # the second keeps embeddings in the file
        model = merged(tiny_model, adapter, quantization).model
        torch.testing.assert_close(model.get_input_embeddings()(torch.arange(258)).detach(), rows)
    torch.testing.assert_close(merged(tiny_model, adapter).model.lm_head.weight.detach(), head)


def test_a_head_that_is_the_embeddings_changes_alone(tiny_model: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    shutil.copytree(tiny_model, tied)
    weights = load_file(tied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(config))
    model = merged(tied, written(tmp_path / "lora", pair(HEAD, 258, 64))).model
    rows = weights[f"{EMBEDDINGS}.weight"]
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), rows)
    torch.testing.assert_close(model.lm_head.weight.detach(), rows + 4 * product(pair(HEAD, 258, 64), HEAD))


def test_of_a_packed_model_the_merged_weights_are_packed(tiny_model: Path, tmp_path: Path) -> None:
    adapter = written(tmp_path / "lora", BOTH)
    packed = merged(tiny_model, adapter, "packed")
    assert isinstance(packed.model.get_submodule(Q), PackedLinear)
    exact, plain = logits(merged(tiny_model, adapter).model), logits(merged(tiny_model, None).model)
    assert (logits(packed.model) - exact).norm() < 0.1 * (exact - plain).norm()


# GGUF files


@pytest.mark.parametrize("exact", [True, False])
def test_into_a_gguf_file(tmp_path: Path, exact: bool) -> None:
    model = build("llama")  # its file has the rows of queries in another order
    path = write_source("llama", model, tmp_path)
    outputs, inputs = model.get_submodule(Q).weight.shape
    tensors = pair(Q, outputs, inputs) | pair(HEAD, *model.lm_head.weight.shape)
    adapter = Adapter(written(tmp_path / "lora", tensors))
    before = logits(model)
    for layer in (Q, HEAD):
        model.get_submodule(layer).weight.data += 4 * product(tensors, layer)
    after = logits(model)
    merging = Merging(
        Numbers(torch.float32, CPU) if exact else Blocks(Silent(), rounds=False), adapter, exact=exact
    )
    read = read_back(path, merging)
    merging.require_all_merged()
    error = (logits(read) - after).norm() / (after - before).norm()
    assert error < (1e-5 if exact else 0.03)
    if not exact:
        kinds = {
            name: module.packed.kind for name, module in read.named_modules() if hasattr(module, "packed")
        }
        assert kinds[Q] != kinds[Q.replace("layers.1", "layers.0")]


@pytest.mark.parametrize(
    ("layer", "words"),
    [(EMBEDDINGS, "is not kept as numbers"), ("model.norm", "of a GGUF file stays as it is")],
)
def test_a_gguf_files_other_weights_stay(tmp_path: Path, layer: str, words: str) -> None:
    path = write_source("llama", build("llama"), tmp_path)
    adapter = Adapter(written(tmp_path / "lora", {f"{layer}.weight": torch.ones(1)}))
    merging = Merging(Numbers(torch.float32, CPU), adapter, exact=True)
    with raises_told(ModelUnavailableError, match=words):
        read_back(path, merging)
        merging.require_all_merged()


def test_numbers_in_8_bits_are_off_by_half_a_step() -> None:
    from adamas_kernels.blocks import unpack

    numbers = torch.randn(5, 96)
    numbers[2] = 0
    weight = in_8_bits(numbers)
    assert weight.kind == "Q8_0"
    step = numbers.view(5, 3, 32).abs().amax(-1) / 127
    error = (unpack(weight) - numbers).view(5, 3, 32).abs().amax(-1)
    assert (error <= 0.51 * step + 127 * step / 2048).all()  # a scale has 11 significant bits
    assert in_8_bits(torch.ones(2, 40)).kind == "F32"


# names


def test_a_kept_document_is_of_one_adapter(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, BOTH, r=rank) for name, rank in (("a", RANK), ("b", RANK + 1)))
    prints = {found(tiny_model, adapter).fingerprint for adapter in (None, first, second)}
    assert len(prints) == 3
    before = found(tiny_model, first).fingerprint
    written(first, pair(Q, 64, 64))
    assert found(tiny_model, first).fingerprint != before


def test_without_a_model_it_is_that_of_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    adapter = written(tmp_path / "lora", BOTH, tiny_model)
    files = found(None, adapter)
    assert (files.directory, files.adapter) == (tiny_model, adapter)
    assert files.name == f"{tiny_model} + lora"
    assert files.texts == tiny_model
    (adapter / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    assert found(None, adapter).texts == adapter


def test_commands_take_it(run_here: Run, tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("Anna came home.\n" * 8)
    adapter = written(tmp_path / "lora", BOTH, tiny_model)
    asked = ("ask", text, "Who came?", "-n", "2", "--dtype", "float32", "--attn", "full")
    code, _, told = run_here(*asked, "--adapter", adapter)
    assert code == 0, told
    code, shown, told = run_here("plan", text, "--adapter", adapter, "--no-calibrate", "--json")
    assert code == 0, told
    assert json.loads(shown)["model"].endswith(" + lora")
    code, out, told = run_here(*asked, "-m", adapter)
    assert (code, out) == (5, "")
    assert told.splitlines() == [
        f"adamas: {adapter} is an adapter of {tiny_model} and no model of its own.",
        f"Use both: -m {tiny_model} --adapter {adapter}",
    ]


HUB_NAME = "owner/lora"


def test_the_hub_has_adapters_too(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched once, without the merged model beside it; then found in the cache."""
    theirs = written(tmp_path / "theirs", BOTH, tiny_model)
    snapshot = tmp_path / "hub" / "models--owner--lora" / "snapshots" / ("c" * 40)
    fetched = []

    def fetch(repository: str, name: str, **_: object) -> str:
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes((theirs / name).read_bytes())
        fetched.append(name)
        return str(snapshot / name)

    held = [*(path.name for path in theirs.iterdir()), "model.safetensors", "README.md"]
    info = SimpleNamespace(sha="c" * 40, siblings=[SimpleNamespace(rfilename=n, size=1) for n in held])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with raises_told(ModelUnavailableError, "the adapter owner/lora is not on this machine"):
        found(None, HUB_NAME)
    with raises_told(ModelUnavailableError, "models pull owner/lora"):
        require_here(None, adapter=HUB_NAME)
    files = resolve(None, device="cpu", offline=False, adapter=HUB_NAME, progress=Silent())
    assert sorted(fetched) == sorted(path.name for path in theirs.iterdir())
    assert (files.directory, files.adapter) == (tiny_model, snapshot)
    assert files.name == f"{tiny_model} + {HUB_NAME}"
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("c" * 40)
    require_here(None, adapter=HUB_NAME)
    assert found(None, HUB_NAME).fingerprint == files.fingerprint


# what is refused


def refused(model: Path, adapter: Path, words: str) -> None:
    with raises_told(ModelUnavailableError, match=words) as caught:
        merged(model, adapter)
    assert len(caught.value.message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialized by pissa_niter_4, which changes the model"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"r": 8}, "has rank 4, and its settings say 8.\nIt was made for owner/base"),
    ],
)
def test_other_kinds_are_refused(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    refused(tiny_model, written(tmp_path / "lora", BOTH, **config), words)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (pair(Q, 64, 32), r"at .+q_proj\.weight it is for weights of \[64, 32\], and they are \[64, 64\]"),
        (
            pair("model.layers.9.self_attn.q_proj", 64, 64),
            r"model\.layers\.9\.self_attn\.q_proj\.weight is not in it",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(RANK, 64)}, "one half of a change"),
        (
            {f"{Q}.lora_A.weight": torch.ones(RANK, 64), f"{Q}.lora_B.weight": torch.ones(64, 3)},
            "rank 3 and 4",
        ),
        ({f"{HEAD}.weight": torch.ones(300, 64)}, r"\[300, 64\], and they are \[258, 64\]"),
        ({f"{Q}.lora_unheard_of": torch.ones(1)}, "an unknown tensor, .*lora_unheard_of"),
    ],
)
def test_what_does_not_fit_is_told(
    tiny_model: Path, tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    refused(tiny_model, written(tmp_path / "lora", tensors), words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "has no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("["), "adapter_config.json is damaged"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "is damaged"),
    ],
)
def test_damaged_adapters_are_told(
    tiny_model: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    adapter = written(tmp_path / "lora", BOTH)
    damage(adapter)
    refused(tiny_model, adapter, words)


def test_weights_that_a_library_quantizes_are_not_merged_into(tiny_model: Path, tmp_path: Path) -> None:
    files = found(tiny_model, written(tmp_path / "lora", BOTH))
    with pytest.raises(UsageError):  # on any CPU, and on any device with an adapter
        load(files, device="cpu", quantization="bnb-4bit", progress=Silent())
