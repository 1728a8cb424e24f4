"""Models of other programs are listed and used in place; if there are several files, one is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pexpect
import pytest
from test_cli import ADAMAS, environment
from test_models_gguf import write_gguf

from adamas_cli.cli import run
from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models import ModelFiles, resolve
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.quantizations import SeveralFilesError, models_among, quantization
from adamas_cli.models.resolve import require_here
from adamas_cli.models.stores import find_stored, stored
from adamas_cli.progress import Silent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any program's models."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME", "ADAMAS_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ADAMAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("adamas_cli.models.inventory._of_hub", lambda: iter(()))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def place(path: Path, content: bytes = b"abc") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def of_ollama(root: Path, name: str, content: bytes = b"abc", kind: str = "model") -> Path:
    """A model as `ollama pull` stores it. name: registry/namespace/model/tag."""
    digest = f"{len(list(root.glob('blobs/*'))):064x}"
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "f" * 64},
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"},
    ]
    place(root / "manifests" / name, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
    return place(root / "blobs" / f"sha256-{digest}", content)


def in_hub_cache(home: Path, repository: str, *names: str) -> Path:
    snapshot = home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / ("c" * 40)
    for number, name in enumerate(names):
        blob = place(snapshot.parents[1] / "blobs" / str(number), b"x" * (number + 1))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def find(name: str, *, offline: bool = True) -> ModelFiles:
    return resolve(name, device="cpu", offline=offline, progress=Silent())


def names() -> list[str]:
    return [model.name for model in stored()]


# each program's names


def test_ollamas_models_are_called_as_ollama_calls_them(home: Path) -> None:
    root = home / ".ollama/models"
    blob = of_ollama(root, "registry.ollama.ai/library/qwen3/8b")
    of_ollama(root, "registry.ollama.ai/library/gemma3/latest")
    of_ollama(root, "registry.ollama.ai/someone/tuned/q4")
    of_ollama(root, "hf.co/owner/repo/Q8_0")
    of_ollama(root, "registry.ollama.ai/library/cloud/latest", kind="params")
    of_ollama(root, "registry.ollama.ai/library/lost/latest").unlink()
    place(root / "manifests/registry.ollama.ai/library/broken/latest", b"{")
    assert names() == [
        "ollama:hf.co/owner/repo:Q8_0",
        "ollama:gemma3:latest",
        "ollama:qwen3:8b",
        "ollama:someone/tuned:q4",
    ]
    qwen, gemma = find_stored("ollama:qwen3:8b"), find_stored("ollama:gemma3")
    assert qwen is not None
    assert (qwen.path, qwen.bytes) == (blob, 3)
    assert gemma is not None
    assert gemma.name == "ollama:gemma3:latest"


def test_ollamas_models_may_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    of_ollama(tmp_path / "models", "registry.ollama.ai/library/qwen3/8b")
    assert names() == ["ollama:qwen3:8b"]


def test_lm_studios_folders_are_looked_through(home: Path) -> None:
    place(home / ".lmstudio/models/publisher/model/model-Q4_K_M.gguf")
    place(home / ".lmstudio/models/publisher/model/mmproj-model-f16.gguf")
    place(home / ".cache/lm-studio/models/older/one/ONE.GGUF")
    place(home / "chosen/publisher/big/big-00001-of-00002.gguf")
    place(home / "chosen/publisher/big/big-00002-of-00002.gguf", b"defgh")
    place(home / ".lmstudio/settings.json", json.dumps({"downloadsFolder": str(home / "chosen")}).encode())
    assert names() == [
        "lmstudio:publisher/big/big",
        "lmstudio:publisher/model/model-Q4_K_M",
        "lmstudio:older/one/ONE",
    ]
    assert [model.bytes for model in stored()] == [8, 3, 3]


@pytest.mark.parametrize("chosen", [False, True])
def test_llama_cpps_cache_is_listed(home: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    folder = home / ("chosen" if chosen else ".cache/llama.cpp")
    if chosen:
        monkeypatch.setenv("LLAMA_CACHE", str(folder))
    place(folder / "ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf")
    place(folder / "manifest=ggml-org=gemma.json")
    assert names() == ["llama.cpp:ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M"]


def test_repositories_in_the_hubs_cache_have_a_name_for_each_file(home: Path) -> None:
    in_hub_cache(home, "owner/some", "some-Q4_K_M.gguf", "some-Q8_0.gguf", "mmproj-some-F16.gguf")
    in_hub_cache(home, "owner/twice", "a-Q4_K_M.gguf", "b-Q4_K_M.gguf")
    in_hub_cache(home, "owner/weights", "model.safetensors")
    assert names() == ["owner/some:Q4_K_M", "owner/some:Q8_0", "owner/twice:a-Q4_K_M", "owner/twice:b-Q4_K_M"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("gemma-3-4b-it-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("model.BF16-00001-of-00003.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.gguf", "model"),
    ],
)
def test_a_quantization_is_read_off_a_name(name: str, found: str) -> None:
    assert quantization(Path(name)) == found


def test_split_models_count_once_and_encoders_of_pictures_not_at_all() -> None:
    files = ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "mmproj-b.gguf", "b.mmproj-f16.GGUF", "a.GGUF"]
    files += ["imatrix_unsloth.gguf", "readme.md"]
    assert [file.name for file in models_among(map(Path, files))] == ["a.GGUF", "b-00001-of-00002.gguf"]


# using them


@pytest.mark.parametrize("program", ["ollama", "lmstudio", "llama.cpp", "hub", "folder", "capitals"])
def test_a_model_is_used_where_it_lies(home: Path, tmp_path: Path, whole: Path, program: str) -> None:
    content = whole.read_bytes()
    match program:
        case "ollama":
            file = of_ollama(home / ".ollama/models", "registry.ollama.ai/library/tiny/1b", content)
            name = "ollama:tiny:1b"
        case "lmstudio":
            file, name = place(home / ".lmstudio/models/p/m/tiny.gguf", content), "lmstudio:p/m/tiny"
        case "llama.cpp":
            file, name = place(home / ".cache/llama.cpp/tiny.gguf", content), "llama.cpp:tiny"
        case "hub":
            file, name = in_hub_cache(home, "owner/tiny", "tiny-Q8_0.gguf") / "tiny-Q8_0.gguf", "owner/tiny"
            file.write_bytes(content)
        case "folder":
            file, name = place(tmp_path / "some/tiny.gguf", content), str(tmp_path / "some")
        case _:
            file = place(tmp_path / "TINY.GGUF", content)
            name = str(file)
    require_here(name)
    files = find(name)
    assert files.gguf == file
    assert GgufFile(file).architecture == "qwen2"
    assert (files.directory / "tokenizer.json").is_file()
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.suffix in (".gguf", ".safetensors")]


def test_a_folder_of_several_names_them_all(tmp_path: Path) -> None:
    small, large = place(tmp_path / "m-Q4_K_M.gguf"), place(tmp_path / "m-Q8_0.GGUF", b"x" * 200_000_000)
    place(tmp_path / "mmproj-m.gguf")
    with pytest.raises(SeveralFilesError) as caught:
        find(str(tmp_path))
    assert caught.value.exit_code == 2
    assert caught.value.message.splitlines()[1:] == [f"  {small}  (0.0 GB)", f"  {large}  (0.2 GB)"]
    assert caught.value.as_json()["choices"] == [str(small), str(large)]


def test_a_repository_of_several_names_them_all(home: Path) -> None:
    in_hub_cache(home, "owner/some", "some-Q4_K_M.gguf", "some-Q8_0.gguf")
    with pytest.raises(SeveralFilesError, match="owner/some:Q8_0"):
        find("owner/some")
    with pytest.raises(ModelUnavailableError, match="Q2_K is not on this machine"):
        find("owner/some:Q2_K")


@pytest.fixture
def fetched(home: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub with one repository of GGUF files; returns the list of fetched files."""
    held = [
        "README.md",
        "m-Q4_K_M.gguf",
        "Q8_0/m-Q8_0-00001-of-00002.gguf",
        "Q8_0/m-Q8_0-00002-of-00002.gguf",
    ]
    siblings = [SimpleNamespace(rfilename=name, size=10) for name in [*held, "mmproj-m-F16.gguf"]]
    info = SimpleNamespace(sha="c" * 40, siblings=siblings)
    taken: list[str] = []

    def fetch(repository: str, name: str, **_: Any) -> str:
        taken.append(name)
        return str(place(home / "fetched" / name, whole.read_bytes()))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return taken


def test_one_file_of_a_repository_is_fetched(home: Path, fetched: list[str]) -> None:
    files = find("owner/m:q4_k_m", offline=False)
    assert fetched == ["m-Q4_K_M.gguf"]
    assert files.gguf == home / "fetched/m-Q4_K_M.gguf"


def test_pull_fetches_all_parts_of_a_split_one(
    fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "pull", "owner/m:Q8_0"]) == 0
    assert fetched == ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]
    assert capsys.readouterr().out.endswith("m-Q8_0-00001-of-00002.gguf\n")
    assert run(["models", "pull", "owner/m"]) == 2
    assert "owner/m:Q4_K_M" in capsys.readouterr().err
    assert run(["models", "pull", "owner/m:Q2_K"]) == 5


# the commands


def test_ls_lists_them_and_rm_leaves_them_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = of_ollama(home / ".ollama/models", "registry.ollama.ai/library/qwen3/8b", b"x" * 2_000_000)
    assert run(["models", "ls"]) == 0
    assert "ollama:qwen3:8b  " in (out := capsys.readouterr().out)
    assert out.splitlines()[-1].split() == ["ollama:qwen3:8b", "2", "MB", "ollama"]
    assert run(["models", "ls", "--json"]) == 0
    last = json.loads(capsys.readouterr().out)[-1]
    assert (last["program"], last["fetched"], last["paths"]) == ("ollama", True, [str(blob)])
    assert run(["models", "rm", "ollama:qwen3:8b", "-y"]) == 2
    assert "ollama rm" in capsys.readouterr().err
    assert blob.is_file()


def test_a_shell_is_offered_them(home: Path) -> None:
    from adamas_cli.commands.options import _short_names

    of_ollama(home / ".ollama/models", "registry.ollama.ai/library/qwen3/8b")
    assert _short_names("ollama:") == ["ollama:qwen3:8b"]


def test_on_a_terminal_a_number_chooses(home: Path, tmp_path: Path, whole: Path) -> None:
    document = place(tmp_path / "a.txt", b"Anna came.")
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        place(tmp_path / "several" / name, whole.read_bytes())
    env = environment(HOME=str(home), ADAMAS_CACHE_DIR=str(tmp_path / "cache"))
    ask = ["plan", str(document), "Who?", "-m", str(tmp_path / "several"), "--no-calibrate"]
    child = pexpect.spawn(ADAMAS, ask, env=env, encoding="utf-8", timeout=60, dimensions=(40, 200))
    child.expect("Which one")
    child.sendline("7")
    child.expect("from 1 to 2")
    child.sendline("2")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before
    assert "m-Q8_0.gguf: it fits" in child.before
