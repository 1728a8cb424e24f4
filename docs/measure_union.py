"""Measures which share of a layer's earlier blocks the tiles of a chunk choose between them, for
docs/performance.md.

    python docs/measure_union.py MODEL.gguf TEXT [--tokens 16384] [--chunk 8192] [--parts 2048]
        [--shares 0.05,0.1]

If keys and values are in host memory and only chosen blocks came to the GPU, these would come. A row is for a
part of a chunk: the mean over layers and KV heads of the share of blocks before it that any tile of any query
head of the group chooses, and the mean and the largest layer of one tile and query head's own choice. Tiles
choose by the default tolerance, and by the highest estimates up to a fixed share of blocks. The first layers,
which are never in host memory, do not count.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from adamas_kernels.contract import Facts
from adamas_kernels.dispatch import serving
from adamas_kernels.reading import KEY_BLOCK, NEAR, QUERY_BLOCK, BlockMeans, ReadSettings, block_shares
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.backend import TorchBackend
from torch import Tensor

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.document import text_document
from adamas_cli.models import load, resolve
from adamas_cli.progress import Silent
from adamas_cli.settings import DENSE_LAYERS


class Unions(TorchBackend):
    """Sparse reading as it is, which notes unions. parts: tokens; shares: fixed ones. found: by the first
    token of a part and the tokens in it, then by how tiles choose, (share in the union, share of one tile) of
    each layer in turn.
    """

    def __init__(self, layers: int, parts: list[int], shares: list[float]) -> None:
        super().__init__()
        self.found: dict[tuple[int, int], dict[str, list[tuple[float, float]]]] = {}
        self._layers, self._parts, self._shares, self._calls = layers, parts, shares, 0

    def prefill_sparsely(
        self, queries: Tensor, keys: Tensor, values: Tensor, means: BlockMeans, scaling: float,
        settings: ReadSettings, softmax: Softmax = PLAIN, computed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        layer, self._calls = self._calls % self._layers, self._calls + 1
        if layer >= DENSE_LAYERS:
            self._note(queries, keys, means, scaling, settings, softmax)
        backend = serving("prefill_sparsely", Facts.of(queries, keys, values))
        return backend.prefill_sparsely(
            queries, keys, values, means, scaling, settings, softmax, computed=computed
        )

    def _note(
        self, queries: Tensor, keys: Tensor, means: BlockMeans, scaling: float, settings: ReadSettings,
        softmax: Softmax,
    ) -> None:  # fmt: skip
        new, size, kv_heads = queries.shape[2], keys.shape[2], keys.shape[1]
        past = size - new
        tiles = []
        for start in range(0, new, QUERY_BLOCK):
            rows = queries[:, :, start : start + QUERY_BLOCK]
            end = past + start + rows.shape[2]
            tiles.append(block_shares(rows, keys[:, :, :end], means, scaling, softmax)[0])
        for part in self._parts:
            for start in range(0, new, part):
                earlier = (past + start) // KEY_BLOCK
                if earlier < 2 + NEAR:
                    continue
                some = tiles[start // QUERY_BLOCK : (start + part) // QUERY_BLOCK]
                # Without the first block and the near ones, which are always read.
                estimates = torch.stack([tile[:, : earlier - 1 - NEAR] for tile in some])
                row = self.found.setdefault((past + start, part), {})
                for name, chosen in self._choices(estimates, settings.tolerance):
                    union = chosen.any(0).unflatten(0, (kv_heads, -1)).any(1)
                    shares = float(union.float().mean()), float(chosen.float().mean())
                    row.setdefault(name, []).append(shares)

    def _choices(self, estimates: Tensor, tolerance: float) -> list[tuple[str, Tensor]]:
        """Which blocks are chosen, bool like the estimates [tiles, H, blocks], by each way."""
        found = [(f"tolerance {tolerance}", estimates > tolerance)]
        for share in self._shares:
            best = estimates.topk(max(1, round(share * estimates.shape[-1])), -1).indices
            chosen = torch.zeros_like(estimates, dtype=torch.bool).scatter_(-1, best, True)
            found.append((f"{share:.0%}", chosen))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--parts", default="2048")
    parser.add_argument("--shares", default="0.05,0.1")
    options = parser.parse_args()
    files = resolve(options.model, offline=True, progress=Silent())
    loaded = load(files, progress=Silent())
    document = text_document(options.text, files.texts or files.directory, options.tokens)
    parts = [options.chunk, *map(int, options.parts.split(","))]
    layers = loaded.model.config.get_text_config().num_hidden_layers
    noted = Unions(layers, parts, [float(share) for share in options.shares.split(",")])
    timeline = Timeline(
        loaded,
        AttentionSettings("full", read="sparse"),
        context=options.tokens,
        prefill_chunk=options.chunk,
    )
    timeline.read_by(noted)
    print("| before | tokens | by | union | of one tile | largest layer |\n|---:|---:|---|---:|---:|---:|")
    told: set[tuple[int, int]] = set()
    for _ in timeline.read(document.ids):
        for (before, part), ways in noted.found.items():
            if (before, part) in told:
                continue
            told.add((before, part))
            for name, by_layer in ways.items():
                unions, own = zip(*by_layer, strict=True)
                mean = sum(unions) / len(unions)
                print(
                    f"| {before:,} | {part:,} | {name} | {mean:.0%} | {sum(own) / len(own):.1%} "
                    f"| {max(unions):.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
