"""Measures plain transformers in a separate process, so that its memory is not counted as adamas's.

Reads a job as JSON on stdin and prints a line of JSON for each measurement.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from adamas_cli.quiet import prepare_libraries

WARM_UP = 512  # tokens
QUICK_SECONDS = 5.0  # seconds; longer prefills are not repeated


def main() -> None:
    """`generate` reads each length anew: its first token ends the prefill, the others are the decode."""
    job: dict[str, Any] = json.load(sys.stdin)
    prepare_libraries(verbose=0, offline=True)
    import torch
    from transformers import StoppingCriteria

    from adamas_cli.engine.peak import peak_memory
    from adamas_cli.machine.threads import use_threads

    class Clock(StoppingCriteria):
        """Never stops; records when each token arrived."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    device = torch.device(job["device"])
    use_threads(job["threads"])
    model = _load(job, device)
    generated = job["generated"]

    def generate(tokens: int) -> tuple[float, float]:
        """Seconds to read this many tokens, and to decode after them."""
        inputs = torch.tensor([job["ids"][:tokens]], device=device)
        clock = Clock()
        start = time.perf_counter()
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=generated + 1,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[clock],
        )
        return clock.times[0] - start, clock.times[-1] - clock.times[0]

    generate(min(WARM_UP, job["lengths"][0]))
    for length in job["lengths"]:
        print(f"transformers, {length:,} tokens", file=sys.stderr, flush=True)
        samples = [generate(length)]
        while samples[0][0] < QUICK_SECONDS and len(samples) < job["repeats"]:
            samples.append(generate(length))
        for count, seconds in zip((0, generated), zip(*samples, strict=True), strict=True):
            row = {
                "length": length,
                "generated": count,
                "seconds": seconds,
                "peak_memory_bytes": peak_memory(device),
            }
            print(json.dumps(row), flush=True)


def _load(job: dict[str, Any], device: Any) -> Any:
    import torch

    dtype = getattr(torch, job["dtype"])
    if "shape" in job:
        from adamas_cli.lab.bench.shapes import random_model

        return random_model(job["shape"], job["context"], dtype, device)
    if job["gguf"] is not None:
        return _read_gguf(Path(job["gguf"]), Path(job["directory"]), dtype, device)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job["directory"],
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=job["trust_remote_code"],
    )
    return model.to(device).eval().requires_grad_(False)


def _read_gguf(gguf: Path, directory: Path, dtype: Any, device: Any) -> Any:
    """A GGUF file's model with weights in full size, as transformers computes with them."""
    from adamas_cli.models.filling import Numbers
    from adamas_cli.models.gguf.file import GgufFile
    from adamas_cli.models.gguf_model import build_model

    model = build_model(GgufFile(gguf), directory, dtype, device, Numbers(dtype, device))
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
