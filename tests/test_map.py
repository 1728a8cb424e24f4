"""`adamas map`: a table with every answer, continued after any interruption, whatever a document does."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import adamas_cli
from adamas_cli.documents import Selection
from adamas_cli.documents.apart import Source, listed, opened
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import NothingReadableError, UsageError
from adamas_cli.mapping import estimate
from adamas_cli.mapping.estimate import Estimate
from adamas_cli.mapping.job import Answered, Asked, Job
from adamas_cli.mapping.journal import SUFFIX, Journal
from adamas_cli.mapping.rows import Row, columns, failed, record
from adamas_cli.mapping.run import LOST, Run
from adamas_cli.mapping.tables import write_table
from adamas_cli.progress import Silent
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

QUESTIONS = ("Who signs?", "When does it end?")
SCHEMA = {
    "type": "object",
    "properties": {
        "end": {"type": ["string", "null"]},
        "years": {"type": "integer"},
        "parties": {"type": "array", "items": {"type": "string"}},
        "error": {"type": "boolean"},
    },
}


@pytest.fixture
def contracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three documents and an empty one, in the current folder."""
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "contracts"
    (folder / "old").mkdir(parents=True)
    for name, text in {"a.txt": "Ann signs. ", "old/b.txt": "Bob signs. ", "c.md": "It ends. "}.items():
        (folder / name).write_text(text * 9)
    (folder / "empty.txt").touch()
    return folder


def sources_of(*named: str, **chosen: object) -> list[Source]:
    return listed(named, Selection(**chosen), progress=Silent())[0]


def job_of(*questions: str, **chosen: object) -> Job:
    settings = ModelSettings(), DecodingSettings(), Sampling(), Selection(), PromptSettings(), StoreSettings()
    return replace(Job(questions or QUESTIONS, *settings), **chosen)


def table(file: str | Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


class Clerk:
    """Answers with the question and the document's name. stop: after this many documents."""

    def __init__(self, stop: int = 99) -> None:
        self.stop, self.asked = stop, []

    def __call__(self, asked: Sequence[Asked]) -> Iterator[Answered]:
        for source, questions in asked:
            if len(self.asked) == self.stop:
                raise KeyboardInterrupt
            self.asked += [(source.name, text) for text in questions]
            rows = [
                Row(source.name, source.version, text, f"{text} {source.name}", tokens=9, reused=4)
                for text in questions
            ]
            yield Answered(source, rows, 1.0)


def finish(clerk: Clerk, *named: str, job: Job | None = None, **how: object) -> list[dict]:
    """The rows of a run over the sources."""
    output = Path("answers.jsonl")
    Run(job or job_of(), sources_of(*named), output, **how).finish(lambda: clerk, Silent())
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_answers_are_those_of_ask_and_failures_are_rows(run_here, contracts, tiny_model):
    how = ("-m", tiny_model, "--device", "cpu", "-n", "6", "--draft", "off")
    asked = [word for text in QUESTIONS for word in ("-q", text)]
    code, out, err = run_here("map", "contracts", *asked, "-o", "answers.csv", "--json", *how)
    rows = table("answers.csv")
    names = ["contracts/a.txt", "contracts/c.md", "contracts/empty.txt", "contracts/old/b.txt"]
    assert [(row["document"], row["question"]) for row in rows] == [
        (name, text) for name in names for text in QUESTIONS
    ]
    model = adamas_cli.load(str(tiny_model), device="cpu", max_tokens=6, draft="off")
    with model.open("contracts/c.md") as document:
        expected = [document.ask(text).text for text in QUESTIONS]
    assert [row["answer"] for row in rows[2:4]] == expected
    assert [bool(row["error"]) for row in rows] == [False] * 4 + [True] * 2 + [False] * 2
    assert "empty" in rows[4]["error"]
    assert code == 1  # because of the empty one
    report = json.loads(out)
    assert (report["documents"], report["rows"], report["failed"], report["answered"]) == (4, 8, 2, 8)
    used = [row for row in rows if not row["error"]]
    assert report["tokens_read"] == sum(int(row["tokens"]) - int(row["reused"]) for row in used)
    assert report["tokens_reused"] == sum(int(row["reused"]) for row in used) > 0
    assert "8 rows about 4 documents in answers.csv, 2 without an answer" in err

    code, out, _ = run_here("map", "contracts", *asked, "-o", "answers.csv", "--json", *how)
    assert json.loads(out)["answered"] == 0
    assert table("answers.csv") == rows


def test_a_schema_gives_a_column_for_each_property(run_here, contracts, tiny_model):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    schema["additionalProperties"] = False
    Path("schema.json").write_text(json.dumps(schema))
    how = ("-m", tiny_model, "--device", "cpu", "-n", "64", "--schema", "schema.json")
    code, _, err = run_here("map", "contracts/a.txt", "-q", "Is it signed?", "-o", "answers.jsonl", *how)
    assert code == 0, err
    [row] = map(json.loads, Path("answers.jsonl").read_text().splitlines())
    assert isinstance(row["yes"], bool)
    assert "answer" not in row
    long = ("map", "contracts/a.txt", "-q", "Who?", "-o", "x.jsonl", "--on-overflow", "map-reduce")
    assert run_here(*long, *how)[0] == 2


def test_a_long_document_is_read_in_parts_if_asked_to(run_here, contracts, tiny_model):
    Path("long.txt").write_text("The fox and the crow. " * 60)
    how = ("-m", tiny_model, "--device", "cpu", "-n", "4", "--ctx-size", "1200")
    code, _, _ = run_here("map", "long.txt", "-q", "Who?", "-o", "answers.jsonl", *how)
    assert code == 1
    assert "context" in json.loads(Path("answers.jsonl").read_text())["error"]
    parts = (*how, "--on-overflow", "map-reduce")
    code, _, err = run_here("map", "long.txt", "-q", "Who?", "-o", "parts.jsonl", *parts)
    assert code == 0, err + Path("parts.jsonl").read_text("utf-8")
    assert json.loads(Path("parts.jsonl").read_text())["error"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("contracts", "-o", "a.csv"), "-q"),
        (("contracts", "-q", " ", "-o", "a.csv"), "-q"),
        (("contracts", "-q", "Who?"), "-o"),
        (("contracts", "-q", "Who?", "-o", "a.xlsx"), ".csv"),
        (("nothing*", "-q", "Who?", "-o", "a.csv"), "matches"),
        (("-", "-q", "Who?", "-o", "a.csv"), "stdin"),
        (("contracts", "-q", "Who?", "-o", "a.csv", "--workers", "2"), "--on"),
    ],
)
def test_a_wrong_command_line_is_refused_before_a_model_is_loaded(run_here, contracts, arguments, words):
    code, out, err = run_here("map", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert not list(Path().glob("*.journal"))


def test_an_interrupted_run_continues_without_a_lost_or_repeated_row(contracts):
    first, second = Clerk(stop=4), Clerk()
    with pytest.raises(KeyboardInterrupt):
        finish(first, "contracts")
    assert not Path("answers.jsonl").exists()
    rows = finish(second, "contracts")
    asked = first.asked + second.asked
    assert len(asked) == len(set(asked)) == 8
    assert [f"{row['question']} {row['document']}" for row in rows] == [row["answer"] for row in rows]
    assert rows == finish(Clerk(stop=0), "contracts")  # nothing is asked any more


def test_only_what_is_new_is_asked(contracts):
    finish(Clerk(), "contracts")
    (contracts / "a.txt").write_text("Ann does not sign.")
    (contracts / "d.txt").write_text("Dan signs.")
    clerk = Clerk()
    rows = finish(clerk, "contracts", job=job_of(*QUESTIONS, "Why?"))
    new = {name for name, text in clerk.asked if text != "Why?"}
    assert new == {"contracts/a.txt", "contracts/d.txt"}
    assert len(rows) == 3 * 5
    (contracts / "d.txt").unlink()
    assert len(finish(Clerk(stop=0), "contracts")) == 2 * 4  # without rows that the command does not ask for


def test_what_had_no_answer_is_asked_again_on_request(contracts):
    def no_one(asked: Sequence[Asked]) -> Iterator[Answered]:
        yield from ()

    rows = finish(no_one, "contracts/a.txt")
    assert [row["error"] for row in rows] == [LOST, LOST]
    assert finish(Clerk(stop=0), "contracts/a.txt") == rows
    rows = finish(Clerk(), "contracts/a.txt", retry=True)
    assert [row["error"] for row in rows] == [None, None]


def test_a_journal_survives_a_killed_writer_and_admits_one(tmp_path):
    file, facts = tmp_path / f"a.csv{SUFFIX}", {"model": "x"}
    rows = [Row("a.txt", "1", text, "yes") for text in QUESTIONS]
    with Journal(file, facts) as journal:
        journal.add(rows[:1])
        with pytest.raises(UsageError, match="another run"):
            Journal(file, facts)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"document": "b.txt", "ver')
    with Journal(file, facts) as journal:
        assert len(journal) == 1
        journal.add(rows[1:])
        assert list(journal.rows([("a.txt", "1", text) for text in reversed(QUESTIONS)])) == rows[::-1]
    with Journal(file, facts) as journal:
        assert len(journal) == 2
    with pytest.raises(UsageError, match=r"other settings \(model\)"):
        Journal(file, {"model": "y"})
    for content in (b"question,answer\n", whole + b"[]\n"):
        file.write_bytes(content)
        with pytest.raises(UsageError):
            Journal(file, facts)


def test_settings_that_change_answers_belong_to_the_journal():
    facts = job_of().facts()
    assert json.loads(json.dumps(facts)) == facts
    assert job_of(model=ModelSettings(threads=3, device="cpu", offline=True)).facts() == facts
    assert job_of(prompt=PromptSettings(max_tokens=7)).facts() != facts
    assert job_of(schema=SCHEMA).facts() != facts


def test_columns_of_a_schema_have_its_types(tmp_path):
    names = [(column.name, column.type) for column in columns(SCHEMA)]
    expected = [("end", "string"), ("years", "integer"), ("parties", "json"), ("answer_error", "boolean")]
    assert names[2:6] == expected
    fields = {"end": "May", "years": 3, "parties": ["Ann", "Bob"], "error": False}
    rows = [Row("a", "1", "Who?", "{...}", fields), *failed(Source("b", "/b"), ["Who?"], "unreadable")]
    records = [record(row, SCHEMA) for row in rows]
    assert (records[0]["answer_error"], records[0]["error"]) == (False, None)
    assert (records[1]["years"], records[1]["error"]) == (None, "unreadable")
    for name in ("t.csv", "t.jsonl"):
        write_table(tmp_path / name, columns(SCHEMA), records)
    [first, second] = table(tmp_path / "t.csv")
    assert (first["years"], first["parties"], second["years"]) == ("3", '["Ann", "Bob"]', "")
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])["parties"] == ["Ann", "Bob"]


def test_parquet_keeps_types(tmp_path):
    from pyarrow import parquet

    rows = [record(Row("a", "1", "Who?", fields={"years": n, "end": "May"}), SCHEMA) for n in range(2500)]
    write_table(tmp_path / "t.parquet", columns(SCHEMA), rows)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.column("years").to_pylist() == list(range(2500))
    assert [str(table.schema.field(name).type) for name in ("years", "end", "seconds")] == [
        "int64",
        "string",
        "double",
    ]


def test_patterns_and_folders_list_each_file_once(contracts):
    names = [source.name for source in sources_of("contracts/**/*.txt", "contracts/a.txt", "contracts")]
    assert names == ["contracts/a.txt", "contracts/c.md", "contracts/empty.txt", "contracts/old/b.txt"]
    assert [source.name for source in sources_of("contracts", exclude=("*.txt",))] == ["contracts/c.md"]
    assert [source.name for source in sources_of("contracts/old/*")] == ["contracts/old/b.txt"]


def test_files_of_folders_keep_the_rules_of_folders(contracts):
    (contracts / "package-lock.json").write_text("{}")
    from_folder, named = sources_of("contracts/", include=("package*",)), sources_of("contracts/package*")
    how = {"progress": Silent(), "keep_converted": False}
    with (
        pytest.raises(NothingReadableError, match="lock files"),
        opened(from_folder[0], Selection(), **how),
    ):
        pass
    with opened(named[0], Selection(), **how) as [document]:
        assert document.path == "contracts/package-lock.json"


def test_urls_of_fsspec_are_listed_and_fetched(contracts):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe({"/box/a.txt": b"Ann signs.", "/box/deep/b.txt": b"Bob signs.", "/box/c.bin": b"\0\1"})
    try:
        assert len(sources_of("memory://box")) == 3
        found = sources_of("memory://box/**/*.txt")
        assert [source.bytes for source in found] == [10, 10]
        with opened(found[1], Selection(), progress=Silent(), keep_converted=False) as [document]:
            assert (document.path, "".join(document.pieces())) == (found[1].name, "Bob signs.")
        with pytest.raises(UsageError, match="No file"):
            sources_of("memory://box/*.pdf")
    finally:
        system.rm("/box", recursive=True)


def test_the_remaining_time_counts_bytes_of_each_kind(monkeypatch):
    now = 0.0
    monkeypatch.setattr(estimate.time, "monotonic", lambda: now)
    texts = [Source(f"{n}.txt", "", 100) for n in range(4)]
    scan = Source("scan.pdf", "", 1000)
    left = Estimate([*texts, scan])
    for source in texts[:3]:  # two workers: 4 s each, 6 s in all
        left.add(source, 4.0)
        assert (left.remaining() is None) == (source is not texts[2])
        now += 2.0
    now = 6.0
    assert left.remaining() == pytest.approx((4.0 + 40.0) * 4 / 12 - 2.0)


def test_a_worker_takes_one_gpu_or_the_cores_of_the_smallest_node():
    from adamas_cli.mapping.cluster import _needs

    cores = [
        {"Alive": alive, "Resources": {"CPU": count}} for count, alive in ((8, True), (4, True), (2, False))
    ]
    head = {"Alive": True, "Resources": {}}
    taken, room, model = _needs(ModelSettings(), {"CPU": 12}, [head, *cores])
    assert (taken, room, model.threads) == ({"num_cpus": 4}, 3, 4)
    assert _needs(ModelSettings(threads=3), {"CPU": 12}, cores)[:2] == ({"num_cpus": 3}, 3)
    taken, room, model = _needs(ModelSettings(device="cuda:1"), {"CPU": 12, "GPU": 2}, cores)
    assert (taken, room, model.device) == ({"num_gpus": 1}, 2, "cuda")
    assert _needs(ModelSettings(device="cpu"), {"CPU": 12, "GPU": 2}, cores)[0] == {"num_cpus": 4}


def test_a_split_model_takes_gpus_of_one_node():
    from adamas_cli.mapping.cluster import _needs

    nodes = [{"Alive": True, "Resources": {"GPU": count}} for count in (5, 1, 2)]
    assert _needs(ModelSettings(gpus=2), {"GPU": 8}, nodes)[:2] == ({"num_gpus": 2}, 3)
    with pytest.raises(UsageError, match="`gpus` 6 is more than a node of the cluster has: 5"):
        _needs(ModelSettings(gpus=6), {"GPU": 8}, nodes)
