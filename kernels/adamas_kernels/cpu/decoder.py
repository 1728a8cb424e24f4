"""A whole decode step in one call: from one token, or a few, to the logits after each, for the layers of
`weights.py`.

The simplest layer has 16 stages, whose tasks run on all threads; some stages may have nothing to do. Only a
few numbers change between two steps. Activations are float32. Each of several tokens, of one or more
sequences, is computed as it would be alone, and weights are read once for all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from adamas_kernels.contract import LARGEST_STEP, NewTokens
from adamas_kernels.cpu.attending import SLOTS, Attending, Heads
from adamas_kernels.cpu.formats import MOST_NUMBERS
from adamas_kernels.cpu.linear import Inputs
from adamas_kernels.cpu.program import StepProgram
from adamas_kernels.cpu.records import STAGES, Arena
from adamas_kernels.cpu.rows import TILE
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.weights import AttentionWeights, DecoderWeights, LayerWeights, Mixture, Mlp, Norm

KEPT_SHAPES = 32  # step shapes whose programs are kept


class Decoder:
    """Decodes with weights in blocks, a few tokens of one or more sequences at a time."""

    def __init__(self, runner: Runner, weights: DecoderWeights) -> None:
        self._runner, self._weights = runner, weights
        self._vectors = Vectors()
        self._arenas: list[Arena] = []  # one for each sequence of a step
        self._steps: OrderedDict[tuple[int, ...], _Steps] = OrderedDict()  # by the tokens of each sequence

    def step(self, sequences: Sequence[NewTokens]) -> Tensor:
        """See `TokenDecoder.step`."""
        shape = tuple(len(sequence.tokens) for sequence in sequences)
        if sum(shape) > LARGEST_STEP:
            raise ValueError(f"{sum(shape)} new tokens; a step takes {LARGEST_STEP} of all sequences")
        steps = self._steps.pop(shape, None) or self._new_steps(shape)
        self._steps[shape] = steps
        return steps.run(sequences)

    def most(self, length: int) -> int:
        """See `TokenDecoder.most`."""
        alone = (steps for shape, steps in self._steps.items() if len(shape) == 1)
        return min((steps.most(length) for steps in alone), default=1)

    def _new_steps(self, shape: tuple[int, ...]) -> _Steps:
        while len(self._arenas) < len(shape):
            self._arenas.append(Arena(self._runner.threads))
        if len(self._steps) >= KEPT_SHAPES:
            self._steps.popitem(last=False)
        return _Steps(self._runner, self._arenas, self._vectors, self._weights, shape)


class _Steps:
    """The steps of sequences with these numbers of tokens."""

    def __init__(
        self,
        runner: Runner,
        arenas: Sequence[Arena],
        vectors: Vectors,
        weights: DecoderWeights,
        shape: tuple[int, ...],
    ) -> None:
        self._runner, self._weights, self._vectors, self._shape = runner, weights, vectors, shape
        self._rows = sum(shape)
        self._hidden = self._vector("hidden", weights.hidden)
        self._logits = self._vector("logits", vocabulary := weights.head.weight.rows)[:, :vocabulary]
        self._lse = torch.empty(self._rows * max(layer.attention.heads for layer in weights.layers))
        layers = [layer.attention for layer in weights.layers]
        stages = np.zeros((len(layers), SLOTS, len(shape)), STAGES)
        self._sequences = [
            Attending(runner, arena, layers, new, stages[:, :, index])
            for index, (arena, new) in enumerate(zip(arenas, shape, strict=False))
        ]
        self._program: StepProgram | None = None
        self._stages = stages

    def run(self, sequences: Sequence[NewTokens]) -> Tensor:
        """See `TokenDecoder.step`."""
        for attending, sequence in zip(self._sequences, sequences, strict=True):
            attending.prepare(sequence)
        if self._program is None:
            self._program = self._build()
        tokens = chain.from_iterable(sequence.tokens for sequence in sequences)
        for row, token in zip(self._hidden, tokens, strict=True):
            row[: self._weights.hidden] = self._weights.embedding(token)
        self._program.prepare()
        self._runner.run_program(self._program.program)
        cap = self._weights.softcap
        return self._logits if cap is None else self._logits.div_(cap).tanh_().mul_(cap)

    def most(self, length: int) -> int:
        """See `TokenDecoder.most`, for the first sequence."""
        return self._sequences[0].most(length)

    def _build(self) -> StepProgram:
        program = StepProgram(self._runner, self._rows, self._stages)
        for index, weights in enumerate(self._weights.layers):
            self._layer(program, index, weights)
        normed = self._normalized(program, self._weights.norm, "normed")
        parts = [(self._weights.head, self._logits)]
        program.multiply(program.inputs(normed), parts, factor=self._weights.factor)
        program.finish()
        return program

    def _layer(self, program: StepProgram, index: int, weights: LayerWeights) -> None:
        x = own = program.inputs(self._normalized(program, weights.before_attention, "normed"))
        if weights.parallel and weights.before_mlp is not None:
            own = program.inputs(self._normalized(program, weights.before_mlp, "also normed"))
        attended = self._attended(program, index, weights.attention, x)
        out, add = self._target(weights.after_attention)
        parts = [(weights.attention.output, out)]
        program.multiply(program.inputs(attended), parts, add=add, factor=weights.factor)
        self._add_normalized(program, weights.after_attention, out)
        if not weights.parallel:
            own = program.inputs(self._normalized(program, weights.before_mlp, "normed"))
        out, add = self._target(weights.after_mlp)
        if isinstance(weights.mlp, Mixture):
            for row, its in enumerate(out):  # each token has its own experts
                one = own.only(row)
                self._mixture(program, weights.mlp, one, its[None], add=add, factor=weights.factor)
        else:
            self._mlp(program, weights.mlp, own, out, add=add, factor=weights.factor)
        self._add_normalized(program, weights.after_mlp, out)

    def _normalized(self, program: StepProgram, norm: Norm | None, name: str) -> Tensor:
        """The hidden state itself without a norm, else a vector of this name with the normalized state."""
        if norm is None:
            return self._hidden
        out = self._vector(name, self._weights.hidden)
        program.normalize((norm, self._hidden, out))
        return out

    def _target(self, after: Norm | None) -> tuple[Tensor, bool]:
        """Where a branch's last product goes, and whether it is added there."""
        if after is None:
            return self._hidden, True
        return self._vector("branch", self._weights.hidden), False

    def _add_normalized(self, program: StepProgram, after: Norm | None, branch: Tensor) -> None:
        """Normalize a branch and add it to the hidden state, if a norm comes after the branch."""
        if after is not None:
            program.normalize((after, branch, branch), total=self._hidden)

    def _mlp(
        self, program: StepProgram, mlp: Mlp, x: Inputs, out: Tensor, *, add: bool, factor: float
    ) -> None:
        inner = self._vector("inner", mlp.inner)
        program.first_products(x, [program.inner_record(mlp, x, inner)])
        program.multiply(program.inputs(inner), [(mlp.down, out)], add=add, factor=factor)

    def _mixture(
        self, program: StepProgram, mixture: Mixture, x: Inputs, out: Tensor, *, add: bool, factor: float
    ) -> None:
        router, shared = mixture.router, mixture.shared
        (logits,) = self._vector("router", router.logits.weight.rows, 1)
        (shares,) = self._vector("shares", router.choices, 1)
        chosen = self._vector("chosen", router.choices, 1)[0, : router.choices].view(torch.int32)
        gate = scale = None
        parts = [(router.logits, logits)]
        if mixture.shared_gate is not None:
            (gate,), (scale,) = self._vector("shared gate", 1, 1), self._vector("scale", 1, 1)
            parts.append((mixture.shared_gate, gate))
        program.multiply(x, parts)
        program.route(router, logits, chosen, shares, gate, scale)
        inner = self._vector("experts", mixture.experts.inner, router.choices)
        records = [program.inner_record(mixture.experts, x, inner, chosen=chosen)]
        if shared is not None:
            also = self._vector("shared", shared.inner, 1)
            records.append(program.inner_record(shared, x, also, scale=scale))
        program.first_products(x, records)
        program.mix(mixture, program.inputs(inner), chosen, shares, out, add=add, factor=factor)
        if shared is not None:
            program.multiply(program.inputs(also), [(shared.down, out)], add=True, factor=factor)

    def _attended(self, program: StepProgram, index: int, weights: AttentionWeights, x: Inputs) -> Tensor:
        """Add the stages from a layer's input to the output of its attention, which is returned."""
        ends = list(accumulate(part.weight.rows for part in weights.inputs))
        inputs = self._vector("inputs", ends[-1])
        starts = [inputs[:, end - part.weight.rows :] for part, end in zip(weights.inputs, ends, strict=True)]
        program.multiply(x, list(zip(weights.inputs, starts, strict=True)))
        query, key, value = (inputs[:, place:] for place in weights.places)
        norms = (weights.query_norm, query), (weights.key_norm, key)
        by_head = [norm is not None and norm.weight.shape[-1] == weights.head_dim for norm, _ in norms]
        program.normalize(
            *(
                (norm, vector, vector)
                for (norm, vector), of_heads in zip(norms, by_head, strict=True)
                if norm is not None and not of_heads
            )
        )
        query_norm, key_norm = (
            program.keep(program.norm_record(norm, vector, vector)) if norm is not None and of_heads else 0
            for (norm, vector), of_heads in zip(norms, by_head, strict=True)
        )
        attended = self._vector("attended", weights.heads * weights.head_dim)
        row = 0
        for sequence, new in zip(self._sequences, self._shape, strict=True):
            lse = self._lse[row * weights.heads :]
            parts = Heads(query[row:], key[row:], value[row:], attended[row:], lse)
            sequence.place(index, parts, (query_norm, key_norm))
            row += new
        program.attend(index)
        return attended

    def _vector(self, name: str, size: int, rows: int | None = None) -> Tensor:
        """Float32 [rows, size], shared by all layers that use this name and size; by default one row per
        token.
        """
        if rows is None:
            return self._vectors.rows(name, size, self._rows)
        return self._vectors.rows(name, size, rows, most=rows)


class Vectors:
    """Memory for the vectors of steps, by name and size, shared by steps of any number of tokens."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int, int], Tensor] = {}

    def rows(self, name: str, size: int, rows: int, most: int = LARGEST_STEP) -> Tensor:
        """Float32 [rows, padded size], at most `most` rows. Columns are padded to whole blocks of any type,
        as a weight may end in columns of zeros, and rows to whole TILEs.
        """
        key = name, size, most
        if key not in self._made:
            columns = -(-size // MOST_NUMBERS) * MOST_NUMBERS
            self._made[key] = torch.zeros(-(-most // TILE) * TILE, columns)
        return self._made[key][:rows]
