"""The trial itself: doubles a block of numbers on the GPU; without one, it is only compiled."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_BLOCK = 256
_GENERATION = 80  # GPU generation to compile for without a GPU


@triton.jit
def double_kernel(numbers_ptr, doubled_ptr, count, BLOCK: tl.constexpr):  # noqa: N803
    """Double one block of numbers."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.load(numbers_ptr + offsets, mask=offsets < count, other=0.0)
    tl.store(doubled_ptr + offsets, 2.0 * numbers, mask=offsets < count)


def main() -> None:
    """Print `ran` or `compiled`; raises any error."""
    if torch.cuda.is_available():
        numbers = torch.arange(_BLOCK + 1, dtype=torch.float32, device="cuda")
        doubled = torch.full_like(numbers, torch.nan)
        double_kernel[(2,)](numbers, doubled, len(numbers), BLOCK=_BLOCK)
        if not torch.equal(doubled, 2.0 * numbers):
            raise SystemExit("the compiled kernel gives wrong results")
        print("ran")
        return
    signature = {"numbers_ptr": "*fp32", "doubled_ptr": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    source = ASTSource(fn=double_kernel, signature=signature, constexprs={"BLOCK": _BLOCK})
    triton.compile(source, target=GPUTarget("cuda", _GENERATION, 32))
    print("compiled")


if __name__ == "__main__":
    main()
