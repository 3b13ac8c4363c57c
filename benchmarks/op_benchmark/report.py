"""The tables for people, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.machine import SIZES

from .rows import GROUPS
from .work import OURS

# The rows that answer the questions of most readers; the summary repeats them.
HEADLINES = {
    "plain RoIAlign": ["plain/nchw/forward", "plain/nchw/forward+backward"],
    "the whole FSN RoI stage, multiply": [
        "stage/multiply/nchw/forward",
        "stage/multiply/nchw/forward+backward",
        "stage/multiply/channels_last/forward",
        "stage/multiply/channels_last/forward+backward",
    ],
    "R-FCN's and Light-Head's pooling": [
        "ps/10/nchw/forward",
        "ps/10/nchw/forward+backward",
        "ps/21/nchw/forward",
        "ps/21/nchw/forward+backward",
    ],
    "integer bins": [
        "pool/max/nchw/forward",
        "pool/max/nchw/forward+backward",
        "pool/average/10/nchw/forward",
        "pool/average/10/nchw/forward+backward",
        "pool/average/21/nchw/forward",
        "pool/average/21/nchw/forward+backward",
    ],
    "growth of ours": [
        "scaling/banks/channels_last/forward",
        "scaling/rois/plain/nchw/forward",
        "scaling/rois/stage/nchw/forward",
        "scaling/threads/plain/nchw/forward",
        "scaling/threads/stage/nchw/forward",
        "scaling/threads/plain/channels_last/forward",
        "scaling/threads/stage/channels_last/forward",
    ],
}
LEGEND = """\
ms:     median of rounds in which all contenders take turns, and its quartiles
ratio:  the contender's median divided by the first one's, and the quartiles of the rounds' ratios
peak:   MiB that PyTorch's allocator held at most beyond those before the call, results included;
beyond: the same without the results (output, gradients), and so the extra memory; buffers that
        kernels hold outside of tensors are not seen
GB/s:   the least traffic (inputs and RoIs read once, results written once) divided by the time
copy:   that, as a share of what a copy of 256 MiB by as many threads reads and writes
nchw:   inputs as a convolution leaves them; any conversion of layout is part of the time
threads: torchvision's CPU kernels run on one, whatever their number"""


def _gigabytes(bandwidth: dict[str, float]) -> str:
    return ", ".join(
        f"{bandwidth[size] / 1e9:.1f} ({count // 2**20} MiB)" for size, count in SIZES.items()
    )


def heading(
    facts: dict[str, Any], bandwidth: dict[str, dict[str, float]], arithmetic: float
) -> str:
    commit = (facts["commit"] or "unknown")[:12] + (
        " with changes" if facts["uncommitted_changes"] else ""
    )
    kernel = "compiled" if facts["compiled_kernel"] else "plain PyTorch (no compiled kernel here)"
    copies = [f"copy, threads: {n}   {_gigabytes(speeds)} GB/s" for n, speeds in bandwidth.items()]
    return "\n".join(
        [
            f"{facts['gpu'] or facts['cpu']}; torch {facts['torch']}, torchvision "
            f"{facts['torchvision']}",
            f"commit {commit}; ours: {kernel}",
            *copies,
            f"arithmetic in the cache, {facts['threads']} threads / one: {arithmetic:.2f}",
            f"memory of tensors in huge pages (THP_MEM_ALLOC_ENABLE=1): {facts['huge_pages']}",
            "",
            LEGEND,
        ]
    )


def _quartiles(values: dict[str, float], digits: int) -> str:
    return f"{values['q1']:.{digits}f}-{values['q3']:.{digits}f}"


def _share(contender: dict[str, Any]) -> str:
    if "bytes_per_second" not in contender:
        return ""
    share = contender["share_of_copy_bandwidth"]["big"]
    return f"{contender['bytes_per_second'] / 1e9:6.1f} {share:5.0%}"


def _line(label: str, contender: dict[str, Any], ratio: dict[str, float] | None) -> str:
    time = contender["milliseconds"]
    times = f"{time['median']:8.2f} {_quartiles(time, 1):>15}"
    ratios = f"{ratio['median']:6.2f} {_quartiles(ratio, 2):>13}" if ratio else " " * 20
    megabytes = [contender[key] / 2**20 for key in ("peak_bytes", "peak_bytes_without_results")]
    memory = " ".join(f"{value:7.1f}" for value in megabytes)
    return f"  {label:25}{times} {ratios} {memory} {_share(contender)}".rstrip()


def table_head() -> str:
    return (
        f"  {'':25}{'ms':>8} {'quartiles':>15} {'ratio':>6} {'quartiles':>13} "
        f"{'peak':>7} {'beyond':>7} {'GB/s':>6} {'copy':>5}"
    )


def row_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['name']}   ({row['rounds']} rounds)"]
    for label, contender in row["contenders"].items():
        lines.append(_line(label, contender, row["ratios"].get(label)))
    return lines


def group_title(name: str) -> str:
    return f"\n== {name}: {GROUPS[name]}\n{table_head()}"


def _extra_memory(row: dict[str, Any], label: str) -> str:
    """The peer's and ours beyond the results, which every way of pooling must allocate."""
    theirs, ours = (
        row["contenders"][name]["peak_bytes_without_results"] / 2**20 for name in (label, OURS)
    )
    return f"; extra memory {theirs:.1f} / {ours:.1f} MiB"


def _headline(row: dict[str, Any]) -> Iterator[str]:
    first = row["baseline"]
    fastest = min(row["ratios"], key=lambda label: row["ratios"][label]["median"])
    yield f"{row['name']}:"
    for label, ratio in row["ratios"].items():
        mark = "  <- fastest peer" if first == OURS and label == fastest else ""
        memory = _extra_memory(row, label) if first == OURS else ""
        times = f"{ratio['median']:.2f} ({_quartiles(ratio, 2)})"
        yield f"  {label} / {first}: {times}{memory}{mark}"
    if first == OURS:
        shares = row["contenders"][OURS]["share_of_copy_bandwidth"]
        yield (
            f"  {OURS}: least traffic at {shares['big']:.0%} of the speed of a big copy, "
            f"{shares['cache']:.0%} of a copy in the cache"
        )


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The headline ratios among the measured rows; empty where none was measured."""
    by_name = {row["name"]: row for row in rows}
    lines = []
    for title, names in HEADLINES.items():
        found = [by_name[name] for name in names if name in by_name]
        if found:
            lines += ["", f"== summary: {title}", *(line for r in found for line in _headline(r))]
    return "\n".join(lines)
