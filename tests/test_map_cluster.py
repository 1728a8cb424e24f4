"""`adamas map --on` on Ray clusters of several nodes on this machine, some of which are lost on the way."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from socket import socket

import pytest

from adamas_cli.documents import Selection
from adamas_cli.documents.apart import Source
from adamas_cli.engine.sampling import Sampling
from adamas_cli.mapping.cluster import on_cluster
from adamas_cli.mapping.job import Answered, Job
from adamas_cli.mapping.journal import SUFFIX
from adamas_cli.mapping.rows import Row
from adamas_cli.mapping.run import LOST, Answers, Run
from adamas_cli.progress import Silent
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

QUESTIONS = ("Who signs?", "When does it end?")


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[object]:
    """A cluster whose head has no CPU for workers; tests add nodes of one."""
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 0, "object_store_memory": 100 << 20, "ray_client_server_port": port}
    started = Cluster(initialize_head=True, head_node_args=head)
    started.client = f"ray://127.0.0.1:{port}"
    try:
        yield started
    finally:
        import ray

        ray.shutdown()
        started.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def add_node(cluster):
    return cluster.add_node(num_cpus=1, object_store_memory=100 << 20)


def job_of(**chosen: object) -> Job:
    settings = DecodingSettings(), Sampling(), Selection(), PromptSettings(), StoreSettings()
    return Job(QUESTIONS, ModelSettings(device="cpu", threads=1), *settings, **chosen)


def sources(count: int) -> list[Source]:
    return [Source(f"{number:05}.txt", "", 10, "1") for number in range(count)]


def sleeping(
    job: Job, seconds: float = 0.0, log: str = "", deadly: str = "", always: bool = False
) -> Answers:
    """Workers that sleep for each document and note it in a file; one document ends them, once or always."""

    def answers(asked):
        for source, questions in asked:
            time.sleep(seconds)
            if source.name == deadly and (always or not os.path.exists(log + ".died")):
                Path(log + ".died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if log:
                with open(log, "a") as file:
                    file.write(f"{source.name}\n")
            rows = [Row(source.name, source.version, text, f"{text} {source.name}") for text in questions]
            yield Answered(source, rows, seconds)

    return answers


def finish(cluster, count: int, **how: object) -> list[dict]:
    answers = on_cluster(job_of(), cluster.address, begin=partial(sleeping, **how))
    output = Path("answers.jsonl")
    Run(job_of(), sources(count), output).finish(lambda: answers, Silent())
    return [json.loads(line) for line in output.read_text().splitlines()]


def assert_whole(rows: list[dict], count: int, failed: tuple[str, ...] = ()) -> None:
    """Every row is there once, and in the journal as well."""
    keys = [(f"{number:05}.txt", text) for number in range(count) for text in QUESTIONS]
    assert [(row["document"], row["question"]) for row in rows] == keys
    for row in rows:
        lost = row["document"] in failed
        assert row["answer"] == (None if lost else f"{row['question']} {row['document']}")
        assert row["error"] == (LOST if lost else None)
    kept = [json.loads(line) for line in Path(f"answers.jsonl{SUFFIX}").read_text().splitlines()[1:]]
    assert sorted((row["document"], row["question"]) for row in kept) == sorted(keys)


def test_a_real_model_answers_as_on_this_machine(cluster, run_here, tiny_model, tmp_path):
    add_node(cluster)
    Path("docs").mkdir()
    for name in ("a", "b", "c"):
        Path(f"docs/{name}.txt").write_text(f"The {name} signs. " * 9)
    how = ("docs", "-q", QUESTIONS[0], "-m", tiny_model, "--device", "cpu", "-n", "8", "--threads", "1")
    tables = []
    for on in ((), ("--on", cluster.address), ("--on", cluster.client)):
        code, _, err = run_here("map", *how, "-o", f"{len(tables)}.jsonl", *on)
        assert code == 0, err
        rows = map(json.loads, Path(f"{len(tables)}.jsonl").read_text().splitlines())
        tables.append([row | {"seconds": 0} for row in rows])
    assert tables[0] == tables[1] == tables[2]
    Path("empty").mkdir()
    far = ("-m", "empty", "--on", cluster.client, "--json")
    code, out, _ = run_here("map", "docs", "-q", "Who?", "-o", "none.csv", *far)
    assert (code, json.loads(out)["error"]["type"]) == (5, "model_unavailable")


def test_a_killed_worker_loses_nothing(cluster, tmp_path):
    add_node(cluster)
    add_node(cluster)
    rows = finish(cluster, 20, seconds=0.1, log=str(tmp_path / "log"), deadly="00007.txt")
    assert (tmp_path / "log.died").exists()
    assert_whole(rows, 20)


def test_a_document_that_always_ends_its_worker_is_a_row(cluster, tmp_path, monkeypatch):
    add_node(cluster)
    monkeypatch.setattr("adamas_cli.mapping.cluster._TASKS", 2)  # so that a task has three of them
    rows = finish(cluster, 6, log=str(tmp_path / "log"), deadly="00004.txt", always=True)
    assert_whole(rows, 6, failed=("00004.txt",))


def test_a_lost_node_loses_nothing(cluster, tmp_path):
    add_node(cluster)
    second = add_node(cluster)
    log = tmp_path / "log"

    def lose() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 6:
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    assert_whole(finish(cluster, 40, seconds=0.3, log=str(log)), 40)


def test_a_killed_run_continues(cluster, tmp_path):
    add_node(cluster)
    log, journal = tmp_path / "log", tmp_path / f"answers.jsonl{SUFFIX}"
    script = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import test_map_cluster as tests
        from ray import cloudpickle
        from types import SimpleNamespace
        cloudpickle.register_pickle_by_value(tests)
        tests.finish(SimpleNamespace(address={cluster.address!r}), 30, seconds=0.3, log={str(log)!r})
        """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 8:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    known = {json.loads(line)["document"] for line in journal.read_text().splitlines()[1:]}
    log.unlink()
    assert_whole(finish(cluster, 30, log=str(log)), 30)
    assert 4 <= len(known) < 30
    assert known.isdisjoint(log.read_text().splitlines())  # what had its rows was not asked again


def test_two_nodes_take_little_more_than_half_the_time(cluster):
    seconds = []
    for _ in range(2):
        add_node(cluster)
        finish(cluster, 4)  # processes are started
        Path(f"answers.jsonl{SUFFIX}").unlink()
        began = time.monotonic()
        assert_whole(finish(cluster, 50, seconds=1.0), 50)
        seconds.append(time.monotonic() - began)
        Path(f"answers.jsonl{SUFFIX}").unlink()
    print(f"one node {seconds[0]:.1f} s, two {seconds[1]:.1f} s")
    assert seconds[1] <= 0.6 * seconds[0]


def test_memory_stays_bounded_over_many_documents(cluster):
    add_node(cluster)
    finish(cluster, 100)
    Path(f"answers.jsonl{SUFFIX}").unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_whole(finish(cluster, 10_000), 10_000)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"10,000 documents: {grown:.0f} MiB more")
    assert grown < 400


def test_two_writers_keep_one_document(tiny_model, tmp_path):
    """Both read and keep it at the same time; a third finds all of it, and no file is damaged."""
    text = tmp_path / "book.txt"
    text.write_text("The fox saw grapes that hung too high. " * 60)
    script = f"""
        import json, sys, time
        import adamas_cli
        model = adamas_cli.load({str(tiny_model)!r}, device="cpu", max_tokens=2, prefill_chunk=256)
        print("ready", flush=True)
        sys.stdin.readline()
        with model.open({str(text)!r}) as book:
            done = book.ask("Who?").done
        print(json.dumps([done.prompt_tokens, done.reused_tokens]))
        """
    own = {"ADAMAS_DOC_CACHE": str(tmp_path / "shared"), "ADAMAS_CACHE_DIR": str(tmp_path / "own")}
    environment = {name: value for name, value in os.environ.items() if name != "ADAMAS_NO_DOC_CACHE"} | own

    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", textwrap.dedent(script)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, **pipes)

    writers = [start(), start()]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outputs = [writer.communicate()[0] for writer in writers]
    assert all(json.loads(out)[0] > 2000 for out in outputs)
    reader = start()
    prompt, reused = json.loads(reader.communicate("go\n")[0].splitlines()[1])
    assert prompt - reused < 200
    check = [sys.executable, "-m", "adamas_cli", "cache", "verify"]
    assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0
