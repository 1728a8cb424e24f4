"""Processes that share a model start and end with each other, in one line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import byte_tokenizer, tiny_architecture
from test_ranks import ANSWER, CPU, DOCUMENT, GREEDY, PROMPT, SPARSE, alone, opened, said, together

from adamas_cli.engine.events import Token
from adamas_cli.errors import OutOfMemoryError, RankLostError
from adamas_cli.ranks.team import Team


def test_three_ranks_and_one_that_is_lost(tmp_path):
    config = tiny_architecture("llama").config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 6, 3, 16
    config.hidden_size = 96
    torch.manual_seed(0)
    type(tiny_architecture("llama"))(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    team = Team([CPU] * 3)
    try:
        three = opened(together(team, tmp_path), SPARSE)
        assert said(three) == said(opened(alone(tmp_path), SPARSE))
        three.return_to(DOCUMENT[:0])
        events = three.go_on(PROMPT, GREEDY, ANSWER, ())
        while not isinstance(next(events), Token):
            pass
        team._others[1].process.kill()
        begun = time.monotonic()
        with pytest.raises(
            RankLostError, match=r"the process of part 3 of 3 of the model ended: signal SIGKILL"
        ):
            list(events)
        assert time.monotonic() - begun < 30
        with pytest.raises(RankLostError):
            said(three)
        assert all(other.process.poll() is not None for other in team._others)
    finally:
        team.close(at_once=True)


def runs_out_of_memory(ranks):
    """In the second rank; the first one waits for it."""
    if ranks.rank == 1:
        raise OutOfMemoryError("out of memory on its GPU")
    ranks.sum(torch.zeros(1))


def test_an_error_of_another_rank_is_reported_as_its_own_kind():
    team = Team([CPU, CPU])
    with pytest.raises(OutOfMemoryError, match=r"^part 2 of 2 of the model: out of memory on its GPU$"):
        team.load(runs_out_of_memory, {})
    assert all(other.process.poll() is not None for other in team._others)
    with pytest.raises(OutOfMemoryError):  # also later
        team.load(runs_out_of_memory, {})


LEADS = """
import time, torch
from adamas_cli.ranks.team import Team
if __name__ == "__main__":
    team = Team([torch.device("cpu")] * 2)
    print(team._others[0].process.pid, flush=True)
    time.sleep(60)
"""


def test_a_process_ends_with_the_one_that_started_it():
    with subprocess.Popen([sys.executable, "-c", LEADS], stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        follower = psutil.Process(int(leader.stdout.readline()))
        leader.kill()
    psutil.wait_procs([follower], timeout=30)
    assert not follower.is_running()


WAITS = """
import socket, threading, torch
from adamas_cli.ranks import group, team

team.STUCK, team.ENDING = 2.0, 0.5
group.unblock = lambda ranks: threading.Event().wait()
pair, kept = socket.socketpair, []

def with_another_holder():
    here, there = pair()
    kept.append(there.dup())
    return here, there

socket.socketpair = with_another_holder
if __name__ == "__main__":
    one = team.Team([torch.device("cpu")] * 2)
    one._on_gpu = one.ranks.under_way = True
    one._others[0].process.kill()
    threading.Event().wait()
"""


def test_a_process_ends_though_its_gpu_waits_and_the_connection_is_held():
    """As on GPUs: what should end the waiting waits itself, and a process that the lost one started lives."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().splitlines()[-1] == (
        "adamas: the process of part 2 of 2 of the model ended: signal SIGKILL"
    )
    assert done.returncode == RankLostError.exit_code


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("It was a dark night. " * 40)
    return path


CHOSEN = "--device", "cpu", "--dtype", "float32", "--quantization", "none"


def test_a_command_answers_over_two_processes_as_over_one(run_here, tiny_model, book):
    answers = []
    for gpus in ("1", "2"):
        code, out, err = run_here(
            "ask", book, "Who came?", "-m", tiny_model, *CHOSEN, "-n", "8", "--json", "--gpus", gpus
        )
        assert code == 0, err
        record = json.loads(out)
        assert record["gpus"] == int(gpus)
        answers.append(record["answer"])
    assert answers[0] == answers[1]


def test_a_lost_process_ends_the_command_with_one_line(tiny_model, book):
    command = "-m", "adamas_cli", "ask", book, "Who came?", "-m", tiny_model, *CHOSEN, "-n", "2000"
    with subprocess.Popen(
        [sys.executable, *map(str, command), "--gpus", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ADAMAS_CONFIG": "/proc/adamas/config.toml"},
    ) as asking:
        assert asking.stdout is not None
        asking.stdout.read(1)  # it answers
        (follower,) = psutil.Process(asking.pid).children()
        follower.kill()
        begun = time.monotonic()
        _, told = asking.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert told.strip().splitlines()[-1] == (
        "adamas: the process of part 2 of 2 of the model ended: signal SIGKILL"
    )
    assert "Traceback" not in told
    assert asking.returncode == RankLostError.exit_code


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--device", "cuda:1"), "--gpus 2 takes the first 2 GPUs: leave out --device cuda:1."),
        ((), "--gpus 2 is more than there are on this machine: 0."),
        (("--device", "cpu", "--quantization", "torchao-int8"), "are for one GPU: leave out --gpus."),
        (
            ("--device", "cpu", "--gpus", "3"),
            "cannot be split over 3 GPUs: its 2 KV heads are not a multiple of 3.",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_before_a_process_starts(run_here, tiny_model, book, options, reason):
    for command in ("ask", "plan"):
        code, _, err = run_here(command, book, "Who came?", "-m", tiny_model, "--gpus", "2", *options)
        assert code in (2, 5)
        assert err.strip().endswith(reason)


def test_a_plan_counts_one_share(run_here, tiny_model, book):
    plans = []
    for gpus in ("1", "2"):
        code, out, err = run_here(
            "plan", book, "Who?", "-m", tiny_model, *CHOSEN, "--gpus", gpus, "--json", "--no-calibrate"
        )
        assert code == 0, err
        plans.append(json.loads(out))
    one, two = (plan["memory"] for plan in plans)
    assert (plans[0]["gpus"], plans[1]["gpus"]) == (1, 2)
    assert two["cache_bytes"] * 2 == one["cache_bytes"]
    assert one["weights_bytes"] / 2 < two["weights_bytes"] < one["weights_bytes"]
    _, out, _ = run_here("plan", book, "Who?", "-m", tiny_model, *CHOSEN, "--gpus", "2", "--no-calibrate")
    assert "on each of 2 GPUs" in out


def test_a_benchmark_runs_over_two_processes(bench):
    code, out, err = bench("--shape", "tiny", "--len", "100", "-n", "4", "-r", "1", *CHOSEN, "--gpus", "2")
    assert code == 0, err
    assert out.startswith("tiny; 2 x ")


def test_measurements_of_answers_run_on_one(evaluate, tiny_model, book):
    code, _, err = evaluate("ppl", "-m", tiny_model, "--text", book, "--gpus", "2", "--device", "cpu")
    assert code == 2
    assert err.strip().endswith("leave out --gpus.")
