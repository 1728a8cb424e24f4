"""One token after another, in the fastest way that model, cache and device allow."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from adamas_kernels.contract import LARGEST_STEP
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.engine.drawn import Drawn
from adamas_cli.engine.model import Model
from adamas_cli.engine.steps.apart import Row, StepsApart, rows_obstacle
from adamas_cli.engine.steps.captured import CapturedSteps, graph_obstacle
from adamas_cli.engine.steps.compiled import CompiledSteps, Entry
from adamas_cli.engine.steps.describe import SPLIT, NoCompiledFormError

# Tokens of a question, at most, that are read in steps. Launched kernel by kernel, a pass of a few tokens
# takes as long as Python needs for its launches, several times as long as a step.
READ_IN_STEPS = 4 * LARGEST_STEP


class Stepper:
    """The steps of one model with one cache.

    reason: why they do not run in the fastest way, in one line, or None. captures: replay steps on a GPU as
    CUDA graphs, if possible. announce: called if that turns out to be impossible.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        sparse: Sparse | None,
        *,
        captures: bool,
        announce: Callable[[str], None],
    ) -> None:
        self._model, self._cache, self._announce = model, cache, announce
        self._compiled: CompiledSteps | None = None
        self._captured: CapturedSteps | None = None
        self._row: Row | None = None  # of the passes of several tokens that attend fully
        self._shares_graphs = rows_obstacle(model, cache, None) is None  # those of all caches of the model
        self._uncheckable = _capture_obstacle(model, cache)
        self.reason: str | None = None
        if model.device.type == "cuda":
            obstacle = graph_obstacle(model, cache, sparse)
            self.reason = obstacle and f"no CUDA graph: {obstacle}"
            if obstacle is None and captures:
                self._captured = CapturedSteps(model, cache)
        else:
            try:
                self._compiled = CompiledSteps(model, cache.kinds)
            except NoCompiledFormError as obstacle:
                self.reason = f"each token goes through transformers' forward ({obstacle})"

    @property
    def captures(self) -> bool:
        """Whether steps are captured; the first one then takes a while."""
        return self._captured is not None

    @property
    def on_gpu(self) -> bool:
        """Whether steps run while the host does other work."""
        return self._model.device.type == "cuda"

    def batch_obstacle(self, mode: Mode) -> str | None:
        """Why steps of this mode cannot be taken with those of other caches, in a few words; None if they
        can.
        """
        if self._model.dense is not None:
            return rows_obstacle(self._model, self._cache, mode.sparse)
        return None if self.runs_compiled(mode) else "compiled steps, which take several, do not serve it"

    def runs_compiled(self, mode: Mode) -> bool:
        """Whether a step of this mode is one call of compiled functions."""
        return self._compiled is not None and (mode.sparse is None or mode.sparse.backend.name == "cpu")

    def check_obstacle(self, mode: Mode) -> str | None:
        """Why steps of this mode do not take several tokens faster than one by one, and give some of them
        back, in a few words; None if they do.
        """
        if self.on_gpu:
            return "steps are not captured" if self._captured is None else self._uncheckable
        if not self.runs_compiled(mode):
            return "steps take one token at a time"
        return None if self._cache.retracts else "layers do not give the last tokens back"

    def most(self, mode: Mode) -> int:
        """How many tokens the next `steps` call should take at most, if nothing prevents several."""
        if self.on_gpu:
            return 1 if self.check_obstacle(mode) else LARGEST_STEP
        return (
            self._compiled.most(self._cache) if self._compiled is not None and self.runs_compiled(mode) else 1
        )

    def step(self, token: Tensor, mode: Mode) -> tuple[Tensor, Drawn | None]:
        """Append one token, int64 [1], attending as an answer's do. Returns the logits after it,
        [vocabulary], valid until the next step, and the greedy token, if the step gives it.
        """
        logits, greedy = self.steps(token, mode)
        return logits[0], greedy

    def steps(self, tokens: Tensor, mode: Mode) -> tuple[Tensor, Drawn | None]:
        """The same for several tokens, int64 [n], without a `check_obstacle`: the logits after each, [n,
        vocabulary], and None.
        """
        if self._compiled is not None and self.runs_compiled(mode):
            return self._compiled.step(Entry(self._cache, tokens.tolist(), mode)), None
        if len(tokens) > 1 and (row := self._row_for(mode)) is not None:
            return self._step_apart(row, tokens, mode), None
        if (captured := self._captured_for(mode)) is not None:
            try:
                return captured.step(tokens, mode)
            except RuntimeError as error:
                if self._model.ranks is not None:  # others may have captured it
                    raise
                if len(tokens) == 1 and isinstance(error, torch.OutOfMemoryError):
                    raise
                self._give_up(len(tokens), str(error).partition("\n")[0])
        return self._model.forward(tokens, self._cache, mode, every=True), None

    def reads(self, tokens: int, mode: Mode, *, again: bool) -> bool:
        """Whether `read` takes this many tokens faster than a pass of their own. again: whether other
        questions will need its CUDA graph too, if there is none yet.
        """
        row = self._row_for(mode)
        if row is None or tokens > READ_IN_STEPS:
            return False
        return again or StepsApart.of(self._model, captures=True).captured(row, LARGEST_STEP)

    def read(self, tokens: Tensor, mode: Mode) -> Tensor:
        """Append a few tokens, int64 [n], in steps of LARGEST_STEP, the last one filled up by tokens that are
        given back. Returns the logits after the last token, [vocabulary].
        """
        row, part, logits = self._row_for(mode), tokens, tokens
        assert row is not None
        for part in tokens.split(LARGEST_STEP):
            after = self._cache.get_seq_length() + len(part)
            logits = self._step_apart(row, F.pad(part, (0, LARGEST_STEP - len(part))), mode)
            self._cache.retract_in_place(after)
        return logits[len(part) - 1]

    def captured(self, mode: Mode, new: int) -> bool:
        """Whether a step of this many tokens needs no new CUDA graph."""
        if self._captured is None:
            return True
        row = self._row_for(mode)
        if row is None:
            return self._captured.captured(mode, new)
        return StepsApart.of(self._model, captures=True).captured(row, new)

    def _row_for(self, mode: Mode) -> Row | None:
        """The cache as a row of passes whose graphs serve all caches of the model, if those take several
        tokens in this mode.
        """
        if self._captured is None or self._uncheckable is not None or not self._shares_graphs:
            return None
        if mode.sparse is not None or not self._cache.get_seq_length():
            return None
        if self._row is None or self._row.mode != mode:
            self._row = Row(self._cache, mode)
        return self._row

    def _step_apart(self, row: Row, tokens: Tensor, mode: Mode) -> Tensor:
        """The logits after each of several tokens, [n, vocabulary]."""
        together = StepsApart.of(self._model, captures=True)
        row.tokens, row.token = self._cache.get_seq_length(), tokens
        try:
            logits, _ = together.step([row])
        except torch.OutOfMemoryError:  # for a graph, before anything was appended
            self._give_up(len(tokens), "no memory for a CUDA graph")
            return self._model.forward(tokens, self._cache, mode, every=True)
        row.settle()
        self._cache.tell_length()
        if not together.captures:
            self._give_up(len(tokens), "the pass is no CUDA graph")
        return logits

    def _give_up(self, tokens: int, reason: str) -> None:
        """Steps of this many tokens cannot be captured."""
        if tokens == 1:
            self._captured = None
            line = self.reason = f"no CUDA graph: {reason}"
        else:
            self._uncheckable = reason
            line = f"no drafts: {reason}"
        self._announce(line)

    def _captured_for(self, mode: Mode) -> CapturedSteps | None:
        """The captured steps for this mode: none for the first token, which makes the buffers, and none where
        keys and values come from host memory, as many as there are.
        """
        brings = mode.sparse is None and self._cache.staged
        return None if brings or not self._cache.get_seq_length() else self._captured


def _capture_obstacle(model: Model, cache: KVCache) -> str | None:
    """Why captured steps do not take several tokens, of which some may be given back; None if they do."""
    if model.ranks is not None:
        return SPLIT
    return "its layers take one token at a time" if model.restarts else cache.unretractable
