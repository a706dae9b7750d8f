"""Would unstructured sparsity pay on a GPU? PyTorch's own CSR products beside its dense ones, on CUDA.

    python benchmarks/sparse_cuda.py [--repeats 25] [--write]

A product of a weight of which few are there, stored in CSR, with a batch of inputs, in float32, beside the dense one
in float32, in TF32 and in bfloat16: the product itself, as in inference, and with the two of the way back, as in
training, of which that by the values is a sampled one. Results are compared before anything is timed. tombola's sparse
layers compute on the CPU alone: this asks whether these products would be worth having. Without a CUDA device it says
that it needs one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from side_by_side import write
from torch import Tensor

DENSITIES = (0.1, 0.05, 0.02, 0.01, 0.005)
SHAPES = ((1024, 1024), (4096, 4096), (16384, 4096))  # outputs, inputs
BATCHES = (64, 512)
CALLS = 10  # in one measurement
DENSE = ("float32", "TF32", "bfloat16")


def milliseconds(function: Callable[[], object]) -> float:
    """Of one call, as the GPU counts it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


def taken(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Times of each function in each turn; they take turns."""
    for function in functions.values():
        milliseconds(function)
    turns = [{name: milliseconds(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: [turn[name] for turn in turns] for name in functions}


def dense(kind: str, weight: Tensor, x: Tensor, above: Tensor, *, training: bool) -> Callable[[], list[Tensor]]:
    """The products of a dense layer: (O, C) by (C, N), and on the way back those with ``above``, (O, N)."""
    low = kind == "bfloat16"
    w, x, above = (tensor.bfloat16() if low else tensor for tensor in (weight, x, above))

    def products() -> list[Tensor]:
        torch.backends.cuda.matmul.allow_tf32 = kind == "TF32"
        return [w @ x, w.T @ above, above @ x.T] if training else [w @ x]

    return products


def sparse(weight: Tensor, x: Tensor, above: Tensor, *, training: bool) -> Callable[[], list[Tensor]]:
    """The same of a weight in CSR; its transposed form is kept beside it, as our layers keep it on the CPU."""
    form, back = weight.to_sparse_csr(), weight.T.contiguous().to_sparse_csr()
    zeros = torch.sparse_csr_tensor(
        form.crow_indices(), form.col_indices(), torch.zeros_like(form.values()), size=form.shape
    )

    def products() -> list[Tensor]:
        torch.backends.cuda.matmul.allow_tf32 = False
        if not training:
            return [form @ x]
        return [form @ x, back @ above, torch.sparse.sampled_addmm(zeros, above, x.T).values()]

    return products


def check(weight: Tensor, x: Tensor, above: Tensor) -> None:
    """Every alternative against the product in double precision."""
    exact = [product.cpu() for product in dense("float64", *(t.double() for t in (weight, x, above)), training=True)()]
    at = weight.cpu() != 0
    ways = {kind: dense(kind, weight, x, above, training=True)() for kind in DENSE}
    ways["sparse"] = sparse(weight, x, above, training=True)()
    for name, found in ways.items():
        tolerance = {"TF32": 5e-3, "bfloat16": 2e-2}.get(name, 1e-5)
        for one, wanted in zip(found, exact, strict=True):
            wanted = wanted[at] if one.ndim == 1 else wanted
            error = float((one.cpu().double() - wanted).norm() / wanted.norm())
            assert error < tolerance, (name, error)


def row(shape: tuple[int, int], batch: int, density: float, *, training: bool, repeats: int) -> str:
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(shape, device="cuda", generator=generator)
    weight *= torch.rand(shape, device="cuda", generator=generator) < density
    x = torch.randn(shape[1], batch, device="cuda", generator=generator)
    above = torch.randn(shape[0], batch, device="cuda", generator=generator)
    check(weight, x, above)
    runs = {kind: dense(kind, weight, x, above, training=training) for kind in DENSE}
    runs["sparse"] = sparse(weight, x, above, training=training)
    times = taken(runs, repeats)
    ratios = {kind: [d / s for d, s in zip(times[kind], times["sparse"], strict=True)] for kind in DENSE}
    cells = [f"{statistics.median(times['sparse']):.3f}", *(f"{statistics.median(ratios[kind]):.2f}" for kind in DENSE)]
    what = "training" if training else "inference"
    return f"| {shape[0]}×{shape[1]} | {batch} | {what} | {density} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/sparse_cuda.md")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("sparse_cuda.py needs a CUDA device, and PyTorch finds none here")
    lines = [
        "# Unstructured sparsity on a GPU: PyTorch's CSR products beside dense ones",
        "",
        f"`python benchmarks/sparse_cuda.py --repeats {options.repeats} --write`: {torch.cuda.get_device_name()}, "
        f"torch {torch.__version__}.",
        "",
        "Milliseconds of the sparse products in float32, and how many times as long the dense ones take (medians of",
        "turns): above 1 sparse is faster. In training the gradients by input and weight are among them.",
        "",
        f"| weight | batch | products | density | sparse ms | {' | '.join(f'× dense {kind}' for kind in DENSE)} |",
        f"|---|---|---|---|---|{'---|' * len(DENSE)}",
    ]
    print("\n".join(lines))
    for shape in SHAPES:
        for batch in BATCHES:
            for training in (False, True):
                for density in DENSITIES:
                    lines.append(row(shape, batch, density, training=training, repeats=options.repeats))
                    print(lines[-1], flush=True)
    if options.write:
        write(Path(__file__).parent / "results" / "sparse_cuda.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
