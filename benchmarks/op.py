#!/usr/bin/env python
"""Measures the op against torchvision and PyTorch: times, ratios, memory, share of bandwidth.

Ours and its peers give equal results (checked first) and take turns in one process. The tables go
to the screen, everything to a JSON file:

  facts      machine, versions, commit, command line
  base       the base setting
  bandwidth  bytes per second of a copy: threads -> buffer -> number
  arithmetic_speedup  how many times as fast as one thread all are, without memory traffic
  rows       name, pass, setting (of the baseline), rounds, and
             contenders  label -> milliseconds {median, q1, q3}, threads, peak_bytes,
                         peak_bytes_without_results; ours also bytes_per_second and its share
             ratios      label -> {median, q1, q3}: the contender's time / the baseline's
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness.machine import arithmetic_speedup, copy_bandwidth, facts
from op_benchmark import report
from op_benchmark.measure import Effort, measure
from op_benchmark.rows import GROUPS, AnyRow, all_rows, select
from op_benchmark.scene import Setting

EXAMPLE = """examples:
  python benchmarks/op.py
  python benchmarks/op.py --rows plain stage/multiply scaling
  python benchmarks/op.py --quick"""
FULL, QUICK = Effort(), Effort(seconds=0.0, rounds=(2, 2))
SECONDS_PER_ROW = 3.5  # with set-up, checks and memory, on two cores of 2021


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = "; ".join(f"{name}: {text}" for name, text in GROUPS.items())
    parser.add_argument(
        "--rows", nargs="+", default=[], help=f"names or their beginnings, default all. {groups}"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads (default 2)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs")
    parser.add_argument("--out", type=Path, default=Path("output/benchmark_op.json"))
    return parser.parse_args()


def base_setting(args: argparse.Namespace) -> Setting:
    """Raises ValueError for arguments that this machine cannot serve."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU; leave it out to measure the CPU")
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    threads = 1 if args.device == "cuda" else args.threads
    base = Setting(device=args.device, threads=threads)
    return replace(base, rois=20, channels=4, height=12, width=16) if args.quick else base


def run(rows: list[AnyRow], base: Setting, effort: Effort) -> dict[str, Any]:
    """Measures the rows and prints them one by one; returns the report."""
    about = facts(base.device, base.threads)
    bandwidth = copy_bandwidth(base.device, sorted({1, base.threads}))
    arithmetic = arithmetic_speedup(base.device, base.threads)
    print(report.heading(about, bandwidth, arithmetic), flush=True)
    measured: list[dict[str, Any]] = []
    group = ""
    for row in rows:
        if row.name.split("/")[0] != group:
            group = row.name.split("/")[0]
            print(report.group_title(group))
        measured.append(measure(row, effort, bandwidth))
        print("\n".join(report.row_lines(measured[-1])), flush=True)
    print(report.summary(measured))
    return {
        "facts": about,
        "base": vars(base),
        "bandwidth": bandwidth,
        "arithmetic_speedup": arithmetic,
        "rows": measured,
    }


def main() -> None:
    args = parse_args()
    try:
        base = base_setting(args)
        rows = select(all_rows(base), args.rows)
    except ValueError as error:
        sys.exit(f"error: {error}")
    minutes = 0.5 if args.quick else len(rows) * SECONDS_PER_ROW / 60
    print(f"{len(rows)} comparisons, about {minutes:.1f} minutes on a machine left alone")
    start = time.perf_counter()
    results = run(rows, base, QUICK if args.quick else FULL)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{args.out} written after {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
