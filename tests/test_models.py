"""Names become files, and files a model; what is missing is reported in two lines, with exit code 5."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from told import raises_told

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.models import ModelFiles, aliases, device, load, resolve
from adamas_cli.models.default import default_name, write_default
from adamas_cli.models.stops import stop_ids
from adamas_cli.progress import Silent


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any models or settings."""
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ADAMAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.delenv("ADAMAS_MODEL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restores what --offline sets
    return tmp_path


def find(name: str | None, *, offline: bool = True) -> ModelFiles:
    return resolve(name, device="cpu", offline=offline, progress=Silent())


def refused(name: str, words: str, *, offline: bool = True) -> None:
    with raises_told(ModelUnavailableError, match=words) as caught:
        find(name, offline=offline)
    assert len(caught.value.message.splitlines()) <= 2
    assert caught.value.exit_code == 5


# names


def test_importing_models_loads_no_torch() -> None:
    code = "import adamas_cli.models, adamas_cli.commands.models, sys; print([*sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'adamas_cli.models.load'" in loaded
    assert not {"'torch'", "'transformers'", "'huggingface_hub'"} & set(loaded.strip("[]\n").split(", "))


def test_the_table_of_aliases_is_consistent() -> None:
    table = aliases.aliases()
    assert {aliases.default_alias(cuda=False), aliases.default_alias(cuda=True)} <= set(table)
    for alias in table.values():
        assert len(alias.sha256) == 64
        assert alias.wheels is not None
        assert (alias.wheels.parts - 1) * alias.wheels.part_bytes < alias.bytes
        assert alias.bytes <= alias.wheels.parts * alias.wheels.part_bytes


def test_a_folder_is_taken_as_it_is(tiny_model: Path) -> None:
    files = find(str(tiny_model))
    assert files.directory == tiny_model
    assert files.name == str(tiny_model)


def test_a_folders_fingerprint_changes_with_its_files(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    before = find(str(copy)).fingerprint
    assert find(str(copy)).fingerprint == before
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert find(str(copy)).fingerprint != before


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no safetensors weights"),
    ],
)
def test_an_incomplete_folder_is_refused(tiny_model: Path, tmp_path: Path, lost: str, words: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / lost).unlink()
    refused(str(copy), words)


def test_a_folder_that_lacks_one_shard_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    refused(str(copy), "lacks model-00002-of-00002.safetensors")


def test_names_of_nothing_are_refused(tmp_path: Path) -> None:
    refused("qwen2.5-coder-0.5", r"Did you mean qwen2\.5-coder-0\.5b\?")
    refused("no such model", "Short names are")
    refused(str(tmp_path / "absent.gguf"), "there is no file")
    refused("owner/model", "--offline forbids")
    refused("smollm2-135m", "--offline forbids")
    refused("owner/--", "is not a model name")


# the hub


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    http = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])  # httpx or its successor
    request = http.Request("GET", "https://hub.example/api/models/owner/model")
    if kind == "ConnectError":
        unreachable: Exception = http.ConnectError("Name or service not known", request=request)
        return unreachable
    if kind == "OfflineModeIsEnabled":
        return errors.OfflineModeIsEnabled("offline")
    error: Exception = getattr(errors, kind)("refused", response=http.Response(403, request=request))
    return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "has no public model owner/model"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE forbids"),
        ("ConnectError", "Name or service not known"),
        ("HfHubHTTPError", "refused"),
    ],
)
def test_a_hub_that_refuses_is_explained(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    refused("owner/model", words, offline=False)


@pytest.fixture
def hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], list[str]]:
    """Lets the hub hold files of these names; returns the list of fetched names."""
    fetched: list[str] = []
    snapshot = tmp_path / "hub" / "snapshots" / ("c" * 40)

    def fetch(repository: str, name: str, *, revision: str, tqdm_class: Any, **_: object) -> str:
        assert (repository, revision) == ("owner/model", "c" * 40)
        fetched.append(name)
        snapshot.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_model / name, snapshot / name)
        with tqdm_class(total=10, name="huggingface_hub.http_get") as bar:
            bar.update(4)
        return str(snapshot / name)

    def hold(names: list[str]) -> list[str]:
        siblings = [SimpleNamespace(rfilename=name, size=10) for name in names]
        info = SimpleNamespace(sha="c" * 40, siblings=siblings)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
        return fetched

    return hold


def test_only_the_files_that_are_needed_come_from_the_hub(
    hub: Callable[[list[str]], list[str]], tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    needed = [path.name for path in tiny_model.iterdir()]
    unneeded = ["pytorch_model.bin", "original/params.json", "README.md", "onnx/model.safetensors"]
    fetched = hub(needed + unneeded)
    files = find("owner/model", offline=False)
    assert sorted(fetched) == sorted(needed)
    assert files.fingerprint == "c" * 40
    assert capfd.readouterr().err == ""


def test_the_bar_of_a_hub_download_ends_at_its_total(
    hub: Callable[[list[str]], list[str]], tiny_model: Path
) -> None:
    counts: list[int] = []
    totals: list[int | None] = []

    class Counting(Silent):
        def task(self, label, total, unit):  # type: ignore[no-untyped-def]
            from contextlib import nullcontext

            totals.append(total)
            return nullcontext(counts.append)

    hub([path.name for path in tiny_model.iterdir()])
    resolve("owner/model", device="cpu", offline=False, progress=Counting())
    assert [sum(counts)] == totals


def test_a_repository_without_safetensors_says_so(hub: Callable[[list[str]], list[str]]) -> None:
    hub(["config.json", "pytorch_model.bin"])
    refused("owner/model", "holds no safetensors", offline=False)


WITHOUT_NETWORK = """
import socket, sys

def refuse(*_, **__):
    raise SystemExit("a network call")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse

from adamas_cli.errors import AdamasError
from adamas_cli.models import load, resolve
from adamas_cli.progress import Silent

try:
    files = resolve(sys.argv[1], device="cpu", offline=True, progress=Silent())
    from transformers import AutoTokenizer
    AutoTokenizer.from_pretrained(files.directory)
    load(files, device="cpu", dtype="float32", progress=Silent())
except AdamasError as error:
    print(error.exit_code)
else:
    print("loaded")
"""


def test_offline_makes_no_network_call(tiny_model: Path) -> None:
    names = {str(tiny_model): "loaded", "owner/model": "5", "smollm2-135m": "5"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    for name, outcome in names.items():
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_NETWORK, name], capture_output=True, text=True, env=environment
        )
        assert (done.stdout.strip(), done.returncode) == (outcome, 0), done.stderr


# loading


def test_a_loaded_model_is_ready_to_answer(tiny_model: Path) -> None:
    loaded = load(find(str(tiny_model)), device="cpu", dtype="float32", progress=Silent())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.context_length == 4096
    assert loaded.stop_ids == (256,)
    assert str(loaded.device) == "cpu"
    assert str(loaded.dtype) == "torch.float32"


def test_weights_are_mapped_not_read(tiny_model: Path) -> None:
    loaded = load(find(str(tiny_model)), device="cpu", dtype="float32", progress=Silent())
    address = loaded.model.model.embed_tokens.weight.data_ptr()
    ranges = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split()
        ranges[tuple(int(end, 16) for end in span.split("-"))] = name
    mapped = next(name for (start, end), name in ranges.items() if start <= address < end)
    assert mapped == str(tiny_model / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", '{"model_type": "of-tomorrow"}', "of-tomorrow"),
        ("config.json", "{", "has a damaged config.json"),
        ("model.safetensors", "not safetensors at all", "cannot load"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(
    tiny_model: Path, tmp_path: Path, name: str, content: str, words: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / name).write_text(content)
    with raises_told(ModelUnavailableError, match=words) as caught:
        load(find(str(copy)), device="cpu", dtype="float32", progress=Silent())
    assert len(caught.value.message.splitlines()) <= 2


def test_devices_and_number_formats_are_checked() -> None:
    import torch

    cpu = device.choose_device("cpu")
    assert device.choose_dtype("bfloat16", cpu) == torch.bfloat16
    for wrong in ("gpu", "cuda:64"):
        with pytest.raises(UsageError, match=wrong):
            device.choose_device(wrong)
    with pytest.raises(UsageError, match="int3"):
        device.choose_dtype("int3", cpu)


@pytest.mark.parametrize(("flag", "chosen"), [("avx512_bf16", "torch.bfloat16"), ("avx2", "torch.float32")])
def test_bfloat16_is_chosen_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, flag: str, chosen: str
) -> None:
    monkeypatch.setattr("adamas_cli.machine.cpu.cpu_flags", lambda: frozenset({flag}))
    assert str(device.choose_dtype("auto", device.choose_device("cpu"))) == chosen


def test_answers_end_at_every_end_that_the_model_knows(tmp_path: Path) -> None:
    tokens = {"<|im_end|>": 5, "<|eot_id|>": 6, "<|im_start|>": 7, "<tool_call>": 8}
    added = [{"id": id_, "content": text, "special": id_ != 8} for text, id_ in tokens.items()]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    config = SimpleNamespace(eos_token_id=2)
    model: Any = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[2, 3]),
        config=SimpleNamespace(get_text_config=lambda: config),
    )
    assert stop_ids(model, tmp_path) == (2, 3, 5, 6)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9]}')
    assert stop_ids(model, tmp_path) == (2, 3, 5, 6, 9)


def test_the_end_of_a_message_ends_no_answer_that_has_several(tmp_path: Path) -> None:
    tokens = {"<|end|>": 5, "<|return|>": 6, "<|call|>": 7}
    added = [{"id": id_, "content": text, "special": True} for text, id_ in tokens.items()]
    model: Any = SimpleNamespace(
        generation_config=None,
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(eos_token_id=6)),
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert stop_ids(model, tmp_path) == (6, 7)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added[:1]}))
    assert stop_ids(model, tmp_path) == (5, 6)


# the default


def test_the_environment_comes_before_the_file_and_the_file_before_the_table(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_name("cpu") == "qwen2.5-coder-0.5b"
    write_default("smollm2-135m")
    assert default_name("cpu") == "smollm2-135m"
    monkeypatch.setenv("ADAMAS_MODEL", "owner/model")
    assert default_name("cpu") == "owner/model"


def test_a_gpu_changes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_cuda_gpu", lambda: True)
    assert default_name() == "qwen2.5-coder-1.5b"
    assert default_name("cpu") == "qwen2.5-coder-0.5b"
    assert default_name("cuda") == "qwen2.5-coder-1.5b"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'model = "new"\n'),
        ("# mine\nbudget = 64\n", 'model = "new"\n# mine\nbudget = 64\n'),
        ('budget = 64\nmodel = "old"  # slow\nseed = 1\n', 'budget = 64\nmodel = "new"\nseed = 1\n'),
    ],
)
def test_choosing_a_default_keeps_the_rest_of_the_file(machine: Path, before: str, after: str) -> None:
    (machine / "config.toml").write_text(before)
    write_default("new")
    assert (machine / "config.toml").read_text() == after


def test_choosing_a_default_does_not_touch_tables(machine: Path) -> None:
    (machine / "config.toml").write_text('[table]\nmodel = "another"\n')
    write_default('with "quotes" and \\')
    import tomllib

    settings = tomllib.loads((machine / "config.toml").read_text())
    assert settings == {"model": 'with "quotes" and \\', "table": {"model": "another"}}


def test_a_broken_configuration_file_is_not_overwritten(machine: Path) -> None:
    (machine / "config.toml").write_text("model = ")
    with pytest.raises(UsageError, match="is not TOML"):
        write_default("new")
    assert (machine / "config.toml").read_text() == "model = "


def test_default_refuses_a_path_that_is_no_file_and_follows_a_link(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMAS_CONFIG", str(tmp_path))
    with pytest.raises(UsageError, match="is not a file"):
        write_default("new")
    (tmp_path / "real.toml").write_text("")
    link = tmp_path / "link.toml"
    link.symlink_to(tmp_path / "real.toml")
    monkeypatch.setenv("ADAMAS_CONFIG", str(link))
    write_default("new")
    assert link.is_symlink()
    assert (tmp_path / "real.toml").read_text() == 'model = "new"\n'
