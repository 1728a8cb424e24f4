"""`adamas plan`: its figures agree with those of `ask`, and it loads nothing to compute them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from adamas_kernels.reference import CODES_PER_WORD, padded_dim
from conftest import TINY_CONTEXT
from test_cli import ADAMAS, Runner, adamas, environment  # noqa: F401 - fixtures

from adamas_cli.engine.events import Done
from adamas_cli.errors import ModelUnavailableError
from adamas_cli.forecast import calibration
from adamas_cli.forecast.speed import Decoding, Reading, recall, remember, remember_run
from adamas_cli.forecast.tree import draw, grow
from adamas_cli.models import ModelFiles
from adamas_cli.models.shape import count_weights, read_shape, shape_of
from adamas_cli.prompt.chat import ChatTemplateFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three documents of 900, 300 and 60 bytes, one token per byte in the tiny model."""
    folder = tmp_path / "docs"
    (folder / "deep" / "est").mkdir(parents=True)
    (folder / "large.txt").write_text("A lighthouse keeper.\n"[:20] * 45)
    (folder / "deep" / "est" / "middle.txt").write_text("Tobias Wren. " * 23 + "\n")
    (folder / "deep" / "small.txt").write_text("x" * 60)
    return folder


@pytest.fixture
def plan(adamas: Runner, tiny_model: Path, tmp_path: Path):  # noqa: F811
    """Runs `adamas plan` on the tiny model with its own cache."""

    def run(*arguments: str | Path, command: str = "plan", **changes: str):
        own = {"ADAMAS_CACHE_DIR": str(tmp_path / "cache")} | changes
        return adamas(command, *arguments, "-m", tiny_model, **own)

    return run


def test_tokens_are_those_that_ask_reads(plan, folder: Path) -> None:
    planned = json.loads(plan(folder, "Who keeps it?", "--no-calibrate", "--json").stdout)
    asked = json.loads(plan(folder, "Who keeps it?", "-n", "4", "--json", command="ask").stdout)
    assert planned["documents"] == asked["documents"]
    assert planned["n_prompt_tokens"] == asked["usage"]["prompt_tokens"]
    assert planned["n_document_tokens"] == sum(document["tokens"] for document in asked["documents"])
    assert (planned["n_ctx"], planned["fits"], planned["parts"]) == (TINY_CONTEXT, True, 1)
    assert planned["time"] is None
    assert planned["kept_tokens"] == 0


def test_what_ask_has_kept_need_not_be_read_again(
    plan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {"ADAMAS_NO_DOC_CACHE": "0", "ADAMAS_DOC_CACHE": str(tmp_path / "store")}

    def kept(*flags: str) -> int:
        return json.loads(plan(folder, "Who?", "--no-calibrate", "--json", *flags, **store).stdout)[
            "kept_tokens"
        ]

    assert kept() == 0
    plan(folder, "Who?", "-n", "4", command="ask", **store)
    again = json.loads(plan(folder, "Who?", "-n", "4", "--json", command="ask", **store).stdout)
    assert kept() == again["usage"]["prompt_tokens_details"]["cached_tokens"] > 1000
    assert kept("--no-doc-cache") == kept("--doc-cache-dtype", "int8") == kept("--dtype", "float32") == 0
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)  # what needed it is remembered
        assert b"are kept and not read again" in plan(folder, "Who?", "--no-calibrate", **store).stdout
    (folder / "deep" / "est" / "middle.txt").write_text("Another beginning.\n" * 20)
    assert kept() == 0


def test_the_largest_come_first_and_a_tree_adds_up(plan, folder: Path) -> None:
    lines = plan(folder, "--no-calibrate").stdout.decode().splitlines()
    names = [line.split()[-1] for line in lines[: lines.index("")]]
    documents = ["large.txt", "deep/est/middle.txt", "deep/small.txt"]
    shown = [name for name in names if name.endswith(".txt")]
    assert [Path(name).name for name in shown] == [Path(name).name for name in documents]
    tree = json.loads(plan(folder, "--tree", "--no-calibrate", "--json").stdout)["tree"]

    def check(branch) -> int:
        below = branch.get("below", [])
        if below:
            assert sum(map(check, below)) == branch["tokens"]
            assert [child["tokens"] for child in below] == sorted((c["tokens"] for c in below), reverse=True)
        return branch["tokens"]

    check(tree)
    drawn = plan(folder, "--tree", "--no-calibrate").stdout.decode()
    assert "└─ " in drawn
    assert "100 %" in drawn


def test_a_token_budget_is_kept_with_exit_code_4(plan, folder: Path) -> None:
    planned = json.loads(plan(folder, "Who?", "--no-calibrate", "--json").stdout)
    exact = planned["n_prompt_tokens"]
    assert plan(folder, "Who?", "--no-calibrate", "--token-budget", str(exact + 30)).returncode == 0
    over = plan(folder, "Who?", "--no-calibrate", "--token-budget", "1k")
    assert over.returncode == 4
    assert b"--token-budget 1,024" in over.stderr
    assert b"prompt " in over.stdout
    error = json.loads(plan(folder, "Who?", "--no-calibrate", "--token-budget", "1k", "--json").stdout)[
        "error"
    ]
    assert (error["exit_code"], error["n_token_budget"]) == (4, 1024)


def test_what_does_not_fit_is_told_in_parts(plan, folder: Path) -> None:
    arguments = (folder, "--no-calibrate", "--ctx-size", "1k", "-n", "100")
    planned = json.loads(plan(*arguments, "--json").stdout)
    assert not planned["fits"]
    around = planned["n_prompt_tokens"] - planned["n_document_tokens"]
    room = 1024 - 100 - around
    assert planned["parts"] == -(-planned["n_document_tokens"] // room) > 1
    shown = plan(*arguments).stdout.decode()
    assert f"It would take {planned['parts']} parts: --on-overflow map-reduce" in shown
    hopeless = plan(folder, "--no-calibrate", "--ctx-size", "1k", "-n", "1k")
    assert hopeless.returncode == 0
    assert b"lower -n" in hopeless.stdout
    assert plan(folder, "--no-calibrate", "--ctx-size", "1m").returncode == 2


def test_a_calibration_is_remembered(plan, folder: Path, tmp_path: Path) -> None:
    first = json.loads(plan(folder, "--json").stdout)["time"]
    assert first["source"] == "calibration"
    assert min(first["prefill_s"], first["decode_tokens_per_s"]) > 0
    written = (tmp_path / "cache" / "speeds.json").read_bytes()
    assert json.loads(plan(folder, "--json").stdout)["time"] == first
    assert (tmp_path / "cache" / "speeds.json").read_bytes() == written
    plan(folder, "--calibrate")
    assert (tmp_path / "cache" / "speeds.json").read_bytes() != written


def test_a_calibration_attends_as_most_layers_do(plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two layers would otherwise be the two dense ones."""
    seen = []
    monkeypatch.setattr(
        calibration, "calibrate", lambda *_, attention, **__: seen.append(attention) or ([], [])
    )
    assert plan(folder, "--calibrate", "--attn", "adamas").returncode == 0
    assert [(settings.kind, settings.dense_layers) for settings in seen] == [("adamas", 0)]


def test_mistakes_are_told(plan, folder: Path) -> None:
    assert plan().returncode == 2
    assert plan(folder / "nothing.txt").returncode in (2, 3)
    assert plan(folder, folder / "nothing.txt").returncode in (2, 3)  # a missing path is no question
    assert plan(folder, "-t", "no-template").returncode == 2
    assert (
        plan(folder, "What is this? " * 30, "--no-calibrate").returncode == 0
    )  # file names cannot be as long as this


def test_a_plan_imports_neither_torch_nor_transformers(
    tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from adamas_cli.cli import run\n"
        f"code = run(['plan', {str(folder)!r}, 'Who?', '--no-calibrate', '-m', {str(tiny_model)!r}])\n"
        "print(code, sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    )
    own = environment(ADAMAS_CACHE_DIR=str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_installed_command_on_a_narrow_terminal(tiny_model: Path, folder: Path) -> None:
    import pexpect

    arguments = ["plan", str(folder), "--no-calibrate", "-m", str(tiny_model)]
    child = pexpect.spawn(
        ADAMAS, arguments, env=environment(TERM="dumb"), dimensions=(40, 48), encoding="utf-8"
    )
    shown = child.read().splitlines()
    child.close()
    assert child.exitstatus == 0
    assert any(line.startswith("memory") for line in shown)
    assert max(map(len, shown)) <= 48


def test_the_manual_shows_what_it_prints(
    adamas: Runner,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Except for memory and time, which differ between machines."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "asking.md").read_text(encoding="utf-8")
    shown = page.split("$ adamas plan pride", 1)[1].split("```", 1)[0].splitlines()
    arguments = shlex.split("pride" + shown[0])
    monkeypatch.chdir(root / "docs" / "examples")
    done = adamas("plan", *arguments, "--no-calibrate")
    printed = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert printed[:-2] == shown[1:-2]
    assert [line.split()[0] for line in printed[-2:]] == [line.split()[0] for line in shown[-2:]]


# its parts


def test_the_shape_is_what_the_engine_computes_with(tiny_model: Path) -> None:
    for fields in (
        {"head_dim": 80, "num_attention_heads": 8, "num_key_value_heads": 2},
        {"head_dim": 8, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"num_attention_heads": 4, "num_key_value_heads": None, "head_dim": None},
    ):
        config = {"hidden_size": 512, "num_hidden_layers": 5, "vocab_size": 9, "max_position_embeddings": 64}
        shape, heads = shape_of(config | fields), fields["num_attention_heads"]
        kv_heads, dim = fields["num_key_value_heads"] or heads, fields["head_dim"] or 512 // heads
        codes = padded_dim(dim) // CODES_PER_WORD * 4
        assert shape.cache_bytes(7, 2) == 7 * 5 * 2 * kv_heads * dim * 2
        assert shape.code_bytes(7, 2) == 7 * 3 * kv_heads * (codes + 2)
    kinds = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    window = shape_of({**config, **fields, **kinds, "sliding_window": 16})
    assert window.cache_bytes(100, 4) == (2 * 16 + 2 * 100) * shape.cache_bytes(1, 4) // 5
    count = count_weights(tiny_model)
    assert (count.embeddings, count.tied) == (258 * 64, False)
    assert read_shape(tiny_model).layers == 4


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8 + b"{}", b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{"]
)
def test_damaged_weights_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelUnavailableError, match="are damaged"):
        count_weights(tmp_path)


def test_the_table_of_models_knows_the_shape_of_a_real_one(smollm2: ModelFiles) -> None:
    from adamas_cli.models.aliases import aliases

    alias = aliases()["smollm2-135m"]
    told = alias.shape | {"max_position_embeddings": alias.context}
    assert shape_of(told) == read_shape(smollm2.directory)


CONVERSATIONS = [
    [{"role": "user", "content": "Who is <b>Bingley</b>?\n"}],
    [{"role": "system", "content": "Be brief. é"}, {"role": "user", "content": "Who?"}],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_chat_templates_are_filled_in_as_transformers_does(
    conversation, tiny_model: Path, smollm2: ModelFiles, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    hard = tmp_path / "hard"
    shutil.copytree(tiny_model, hard)
    (hard / "chat_template.jinja").write_text(
        "{{ bos_token }}{%- for message in messages %}\n    {% if loop.index > 3 %}{% break %}{% endif %}"
        "{% generation %}{{ message | tojson }}{% endgeneration %}\n{% endfor %}"
        "{% if tools is not none %}tools{% endif %}{{ eos_token }}"
    )
    for directory in (tiny_model, smollm2.directory, hard):
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        own = ChatTemplateFile(directory).apply_chat_template(conversation, **options)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        assert own == tokenizer.apply_chat_template(conversation, **options)


def test_timings_of_runs_take_the_place_of_a_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    assert recall("key") is None
    remember("key", [Reading(0, 1000, 10.0)], [Decoding(1000, 10, 1.0)], calibrated=True)
    known = recall("key")
    assert known is not None
    assert known.calibrated
    assert known.prefill_seconds(0, 1000, 0.0) == pytest.approx(10.0)
    assert known.step_seconds(1000, 0.0) == pytest.approx(0.1)
    remember_run("key", Done("stop", 2000, 0, 41, 8.0, 8.1, 2.0, 0))
    known = recall("key")
    assert known is not None
    assert not known.calibrated
    assert known.prefill_seconds(0, 1000, 0.0) == pytest.approx(4.0)
    assert known.prefill_seconds(0, 4000, 1.0) == pytest.approx(32.0, rel=0.01)  # attention alone: quadratic
    assert known.step_seconds(2000, 0.001) == pytest.approx(0.05)
    assert known.step_seconds(5000, 0.001) == pytest.approx(0.1)
    remember_run("key", Done("stop", 2000, 1990, 41, 0.1, 0.2, 2.0, 0))  # too short to be informative
    assert recall("key") == known
    (tmp_path / "speeds.json").write_text("{")
    assert recall("key") is None
    remember("key", [Reading(0, 10, 2.0)], [])
    assert recall("key") is not None


def test_a_folder_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", "/proc/adamas")
    assert remember("key", [Reading(0, 10, 2.0)], []).readings == [Reading(0, 10, 2.0)]
    assert recall("key") is None


def test_small_branches_of_a_tree_are_folded() -> None:
    tokens = {f"many/{index}.txt": 10 - index for index in range(6)} | {"a/b/only.txt": 100, "/abs": 1}
    root = grow(tokens)
    assert (root.tokens, root.files) == (146, 8)
    lines = [(line.indent + line.name, line.tokens) for line in draw(root, 3, 0)]
    assert lines == [
        ("├─ a/b/", 100),
        ("│  └─ only.txt", 100),
        ("├─ many/", 45),
        ("│  ├─ 0.txt", 10),
        ("│  ├─ 1.txt", 9),
        ("│  ├─ 2.txt", 8),
        ("│  └─ 3 more files", 18),
        ("└─ /abs", 1),
    ]
    assert [line.name for line in draw(root, 3, 50)] == ["a/b/", "only.txt", "7 more files"]


def test_a_plan_fetches_no_model(adamas: Runner, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "a.txt").write_text("a text")
    done = adamas("plan", tmp_path / "a.txt", "-m", "smollm2-135m", ADAMAS_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 5
    assert b"smollm2-135m is not on this machine" in done.stderr
    assert b"adamas models pull smollm2-135m" in done.stderr
