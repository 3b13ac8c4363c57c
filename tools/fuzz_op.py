"""Calls the ops with random arguments, good and bad, in a build with AddressSanitizer and
UndefinedBehaviorSanitizer. Every call must return finite numbers of the right shape or refuse.

    python tools/fuzz_op.py --calls 200000
"""

from __future__ import annotations

import argparse
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "fsn_d2/layers/csrc/cpu").glob("*.cpp"))
LIBRARY = ROOT / "build/sanitized/_C.so"
MERGES = ("stack", "sum", "multiply", "multiply_relu")
MODES = ("max", "avg")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# The ends of float32, what overflows on the way to a cell, and what is no number.
EXTREMES = (0.0, -0.0, 1e-45, 1e9, -1e9, 1e30, -1e30, 3.4e38, -3.4e38, math.inf, math.nan)


def build() -> None:
    """Compiles the library with both sanitizers; the first finding ends the process."""
    from torch.utils.cpp_extension import include_paths, library_paths

    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    command = [
        os.environ.get("CXX", "c++"),
        *["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden"],
        *["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        *(f"-I{path}" for path in include_paths()),
        *map(str, SOURCES),
        "-o",
        str(LIBRARY),
        *(f"-L{path}" for path in library_paths()),
        *["-ltorch", "-ltorch_cpu", "-lc10"],
    ]
    subprocess.run(command, check=True)


def restart_under_sanitizer() -> int:
    """Runs this script again with the sanitizer loaded first, as it must be."""
    compiler = os.environ.get("CXX", "c++")
    # The C++ library too: the sanitizer looks for `throw` in it when it starts.
    preload = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FSN_D2_FUZZ": "1",
    }
    return subprocess.run([sys.executable, *sys.argv], env=environment).returncode


class Arguments:
    """Random arguments of one call: sizes small, values of every kind."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.generator = torch.Generator().manual_seed(rng.randrange(2**62))
        # A fault in one call of two: it must be reached past everything that is right.
        self.fault = rng.randrange(16) if rng.random() < 0.5 else None
        self.dtype = rng.choice(DTYPES)
        self.images, self.channels = rng.randint(0, 3), rng.choice((0, 1, 2, 3, 5, 8, 13, 40, 67))
        self.count = rng.choice((0, 1, 2, 7, 70)) if self.images else 0
        self.num_levels, self.num_sources = rng.randint(1, 3), rng.randint(1, 3)
        self.merge = rng.choice(MERGES if self.num_sources > 1 else MERGES[:2])
        self.size = [rng.randint(1, 8), rng.randint(1, 8)]
        self.ratio = rng.choice((0, 0, 1, 2, 3, 17, 1024))
        self.scales = [rng.choice((1.0, 0.25, 1 / 16, 1e-30, 1e30)) for _ in range(self.num_levels)]
        self.extents = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(self.num_levels)]
        self.maps = [rng.randint(1, 5) for _ in range(self.num_sources)]
        self.margin = rng.choice((0, 0, 1, 2))

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def integers(self, limit: int, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randint(max(limit, 1), shape, generator=self.generator)
        if self.fault == 0 and drawn.numel():
            drawn.view(-1)[self.rng.randrange(drawn.numel())] = self.rng.choice(
                (-1, limit, 2**62, -(2**63))
            )
        return drawn

    def bank(self, source: int, level: int) -> Tensor:
        height, width = (side + 2 * self.margin for side in self.extents[level])
        shape = [self.images, self.maps[source], self.channels, height, width]
        if self.fault == 1:
            shape[self.rng.randrange(5)] += self.rng.choice((1, 2))
        values = (self.uniform(*shape) - 0.5).to(self.dtype)
        layout = self.rng.randrange(4)
        if layout == 1:
            values = values.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
        elif layout == 2:
            wide = values.new_zeros(*shape[:3], shape[3] + 1, 2 * shape[4])
            values = wide[..., 1:, ::2].copy_(values)
        elif layout == 3 and values.numel():
            values = values[:1, :1].expand(shape)
        return values.requires_grad_(self.rng.random() < 0.7)

    def rois(self) -> Tensor:
        rois = self.uniform(self.count, 5) * 200 - 50
        rois[:, 0] = torch.randint(max(self.images, 1), (self.count,), generator=self.generator)
        for _ in range(self.rng.choice((0, 0, 1, 5)) if self.count else 0):
            value = self.rng.choice(EXTREMES if self.fault == 2 else EXTREMES[:-2])
            rois[self.rng.randrange(self.count), self.rng.randint(1, 4)] = value
        if self.fault == 3 and self.count:
            rois[self.rng.randrange(self.count), 0] = self.rng.choice((*EXTREMES, -1, self.images))
        kinds = {4: torch.long, 5: torch.float64, 6: torch.float16}
        rois = rois.to(kinds.get(self.fault or 0, torch.float32))
        return rois[:, :4] if self.fault == 7 else rois

    def indices(self) -> list[Tensor]:
        def shape() -> tuple[int, ...]:
            full = (self.count, *self.size)
            kept = tuple(s if self.rng.random() < 0.5 else 1 for s in full)
            return (3, *kept) if self.fault == 8 else kept[self.rng.choice((0, 0, 1, 2)) :]

        return [self.integers(maps, shape()) for maps in self.maps]

    def origins(self) -> list[int]:
        if not self.margin and self.rng.random() < 0.5:
            return []
        limit = 2 * self.margin + (self.fault == 9)
        # The first source sets what is sampled and is read from its corner.
        first = [0] * 2 * self.maps[0]
        rest = [self.rng.randint(-(self.fault == 9), limit) for _ in range(2 * sum(self.maps[1:]))]
        return (first + rest)[: -1 if self.fault == 10 else None]

    def build(self) -> tuple:
        sources, levels = range(self.num_sources), range(self.num_levels)
        banks = [self.bank(s, level) for s in sources for level in levels]
        placed = self.integers(self.num_levels, (self.count,))
        given = placed if self.num_levels > 1 or self.rng.random() < 0.5 else None
        return (
            banks[:-1] if self.fault == 11 else banks,
            self.rois(),
            None if self.fault == 12 else given,
            self.indices(),
            self.origins(),
            [0, -1] if self.fault == 13 else self.size,
            [math.nan] * self.num_levels if self.fault == 14 else self.scales,
            -1 if self.fault == 15 else self.ratio,
            self.merge,
        )

    def build_bins(self) -> tuple:
        """For selective_roi_pool: the first source, with nothing merged or shifted."""
        banks, rois, levels, indices, _, size, scales, ratio, _ = self.build()
        mode = "min" if ratio < 0 else self.rng.choice(MODES)
        return banks[: self.num_levels], rois, levels, indices[0], size, scales, mode


def pool_forward(name: str, arguments: tuple) -> Tensor | None:
    """None where the op refuses the arguments."""
    try:
        return getattr(torch.ops.fsn_d2, name)(*arguments)
    except RuntimeError as error:
        if not str(error).startswith(f"{name}: "):
            raise
        return None


def check_gradients(grads: list[Tensor], inputs: list[Tensor]) -> None:
    for grad, x in zip(grads, inputs, strict=True):
        assert grad.shape == x.shape and bool(torch.isfinite(grad).all())


def call_align(arguments: tuple) -> bool:
    """Forward, and backward where a bank asks for it. Returns whether the op took the arguments.

    Raises:
        AssertionError: a result of the wrong shape, or not finite.
    """
    inputs, rois, levels, indices, origins, size, scales, ratio, merge = arguments
    pooled = pool_forward("selective_roi_align", arguments)
    if pooled is None:
        return False
    channels = inputs[0].shape[2] * (len(indices) if merge == "stack" else 1)
    assert pooled.shape == (len(rois), channels, *size), pooled.shape
    assert bool(torch.isfinite(pooled).all()), "not finite"
    if any(x.requires_grad for x in inputs):
        kept = [x.detach() for x in inputs] if merge.startswith("multiply") else []
        sizes = [n for x in inputs for n in x.shape]
        grads = torch.ops.fsn_d2.selective_roi_align_backward(
            torch.ones_like(pooled), kept, sizes, ratio % 2 == 0, False, rois, levels, indices,
            origins, scales, ratio, merge,
        )  # fmt: skip
        check_gradients(grads, inputs)
    return True


def call_pool(arguments: tuple) -> bool:
    """As `call_align`, for the op's sibling."""
    inputs, rois, levels, index, size, scales, mode = arguments
    pooled = pool_forward("selective_roi_pool", arguments)
    if pooled is None:
        return False
    assert pooled.shape == (len(rois), inputs[0].shape[2], *size), pooled.shape
    assert bool(torch.isfinite(pooled).all()), "not finite"
    if any(x.requires_grad for x in inputs):
        kept = [x.detach() for x in inputs] if mode == "max" else []
        sizes = [n for x in inputs for n in x.shape]
        grads = torch.ops.fsn_d2.selective_roi_pool_backward(
            torch.ones_like(pooled), kept, sizes, len(rois) % 2 == 0, False, rois, levels, index,
            scales, mode,
        )  # fmt: skip
        check_gradients(grads, inputs)
    return True


def call(number: int, rng: random.Random) -> bool:
    arguments = Arguments(rng)
    if number % 2:
        return call_pool(arguments.build_bins())
    return call_align(arguments.build())


def fuzz(calls: int, seed: int) -> None:
    rng, taken, started = random.Random(seed), 0, time.monotonic()
    for number in range(calls):
        state = rng.getstate()
        try:
            taken += call(number, rng)
        except BaseException:
            print(f"call {number} of seed {seed} failed; state {hash(state)}", flush=True)
            raise
        if (number + 1) % 20000 == 0:
            print(
                f"{number + 1} calls, {taken} taken, {number + 1 - taken} refused, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    print(f"done: {calls} calls without a finding, {taken} taken, {calls - taken} refused")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if "FSN_D2_FUZZ" not in os.environ:
        build()
        return restart_under_sanitizer()
    torch.ops.load_library(str(LIBRARY))
    fuzz(arguments.calls, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
