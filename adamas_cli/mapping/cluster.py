"""Documents answered on a Ray cluster: Ray Data gives each worker a few at a time, and replaces workers that
end. A worker is a process with a model of its own, on one GPU or on some CPU cores.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from adamas_cli.errors import AdamasError, UsageError
from adamas_cli.mapping.job import Answered, Asked, Job
from adamas_cli.mapping.rows import failed
from adamas_cli.mapping.run import LOST, Answers
from adamas_cli.progress import Silent
from adamas_cli.quiet import prepare_environment
from adamas_cli.settings import ModelSettings

log = logging.getLogger(__name__)

CLIENT = "ray://"  # before the address of a cluster that this process does not belong to
LOCAL = "ray"  # the cluster of this machine, or the one that RAY_ADDRESS names
_PASSED_ON = ("ADAMAS_DOC_CACHE",)  # variables of this process that workers see: a folder that all share
# Read on import: no telemetry, and no lines of its own between ours.
_SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USAGE_DISABLED": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_TRIES = 3  # of a document that ends its worker, for lack of memory say; then it has no answer
_TASKS = 10_000  # at most, if that leaves few documents for each
_MOST_IN_TASK = 16  # documents that are answered again together if their worker ends

Begin = Callable[[Job], Answers]
"""Makes a worker's model; called in the worker's process."""


def on_cluster(job: Job, address: str, workers: int | None = None, begin: Begin | None = None) -> Answers:
    """Answers from this many workers, by default as many as the cluster has room for.

    address: LOCAL, `ray://HOST:PORT` or `HOST:PORT`. begin: other workers than those with the job's model.
    The answers raise AdamasError if there is no such cluster or it fails as a whole, and the error of a model
    that a worker cannot load.
    """

    def answers(asked: Sequence[Asked]) -> Iterator[Answered]:
        with _connected(address):
            from ray.exceptions import RayError

            found = _from_elsewhere if address.startswith(CLIENT) else _answered
            try:
                for answered in found(job, asked, workers, begin or _with_model):
                    if isinstance(answered, AdamasError):
                        raise answered
                    yield answered
            except RayError as error:
                raise AdamasError(f"the cluster at {address} failed: {str(error).splitlines()[0]}") from error

    return answers


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A scope in which this process belongs to a cluster. Raises AdamasError if there is none."""
    os.environ.update(_SILENT)
    import ray

    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        ray.init(
            None if address == LOCAL else address,
            runtime_env={"env_vars": passed} if passed else None,
            log_to_driver=log.isEnabledFor(logging.INFO),
            logging_level=logging.CRITICAL,
            ignore_reinit_error=True,
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        why = (str(error).strip() or repr(error)).splitlines()[-1]  # the last line of a traceback from there
        raise AdamasError(f"there is no Ray cluster at {address}: {why}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _answered(
    job: Job, asked: Sequence[Asked], workers: int | None, begin: Begin
) -> Iterator[Answered | AdamasError]:
    """What workers answer, or why one of them has no model."""
    import ray.data

    if not log.isEnabledFor(logging.INFO):
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it tells of plans and of what it retries
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.max_errored_blocks = -1  # a document without rows does not end the run
    settings.target_max_block_size = 1  # bytes: the rows of each document leave their worker at once
    resources, room, model = _needs(job.model, ray.cluster_resources(), ray.nodes())
    in_task = max(1, min(_MOST_IN_TASK, len(asked) // _TASKS))
    items = [{"asked": pickle.dumps(one)} for one in asked]
    most = min(workers or room, len(asked))
    documents = ray.data.from_items(items, override_num_blocks=-(-len(asked) // in_task))
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
    rows = documents.map_batches(
        _Worker,
        fn_constructor_args=(replace(job, model=model), begin, tries),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=most, max_size=most, max_tasks_in_flight_per_actor=2
        ),
        **resources,
    )
    for row in rows.iter_rows():
        yield pickle.loads(row["answered"])


def _from_elsewhere(
    job: Job, asked: Sequence[Asked], workers: int | None, begin: Begin
) -> Iterator[Answered | AdamasError]:
    """The same through Ray's client, where Ray Data does not run: an actor in the cluster runs it."""
    import ray

    far = ray.remote(num_cpus=0)(_Far).remote(job, asked, workers, begin)
    while (answered := ray.get(far.next.remote())) is not None:
        yield answered


class _Far:
    """Runs in the cluster, and hands out what is answered one by one."""

    def __init__(self, job: Job, asked: Sequence[Asked], workers: int | None, begin: Begin) -> None:
        self._answered = _answered(job, asked, workers, begin)

    def next(self) -> Answered | AdamasError | None:
        """The next one; None at the end."""
        return next(self._answered, None)


def _needs(
    model: ModelSettings, resources: dict[str, float], nodes: list[dict[str, Any]]
) -> tuple[dict[str, int], int, ModelSettings]:
    """What a worker takes of a cluster, how many there is room for, and their model's settings there. Raises
    UsageError if a model is to be split over more GPUs than a node has.
    """
    gpus = int(resources.get("GPU", 0))
    if gpus and model.device != "cpu":
        room = gpus
        if model.gpus > 1:
            there = [int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
            room = sum(count // model.gpus for count in there)
            if not room:
                raise UsageError(f"`gpus` {model.gpus} is more than a node of the cluster has: {max(there)}.")
        return {"num_gpus": model.gpus}, room, replace(model, device="cuda")  # it sees no others
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    each = model.threads or min((count for count in cores if count), default=1)
    return {"num_cpus": each}, max(1, sum(count // each for count in cores)), replace(model, threads=each)


class _Tries:
    """How often documents were begun and not finished. Ray tries again without end, as it must where nodes
    come and go; so a document that ends each worker is told by this.
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """How often it was begun in vain before."""
        self._begun[name] += 1
        return self._begun[name] - 1

    def end(self, name: str) -> None:
        """It is finished."""
        del self._begun[name]


class _Worker:
    """A model in a process of its own. tries: an actor with `_Tries`."""

    def __init__(self, job: Job, begin: Begin, tries: Any) -> None:
        prepare_environment(silent=True, offline=job.model.offline)
        self._tries = tries
        self._answers: Callable[[Sequence[Asked]], Iterator[Answered | AdamasError]]
        try:
            self._answers = begin(job)
        except AdamasError as error:  # an exception would only be told of as a worker that ended
            plain = AdamasError(error.message, **error.details)
            plain.exit_code, plain.kind = error.exit_code, error.kind
            self._answers = lambda asked: iter([plain])

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        for one in batch["asked"]:
            for answered in self._answered(pickle.loads(one)):
                yield {"answered": [pickle.dumps(answered)]}

    def _answered(self, asked: Asked) -> Iterator[Answered | AdamasError]:
        import ray

        source, questions = asked
        if ray.get(self._tries.begin.remote(source.name)) < _TRIES:
            yield from self._answers([asked])
        else:
            yield Answered(source, failed(source, questions, LOST), 0.0)
        self._tries.end.remote(source.name)


def _with_model(job: Job) -> Answers:
    from adamas_cli.mapping.answering import Answerer

    return Answerer(job, Silent()).answers
