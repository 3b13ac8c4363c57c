"""Which work is measured at which settings: the rows of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from . import work
from .scene import Setting
from .work import OURS, Comparison, Task

LAYOUTS = ("nchw", "channels_last")
GROUPS = {
    "plain": "plain RoIAlign",
    "ps": "position-sensitive RoIAlign (a bank of 49); channels: Light-Head 10, R-FCN 21",
    "pool": "RoI max pooling; position-sensitive average pooling (a bank of 49)",
    "bank": "banks of 9 (by sub-region) and of 3 (by aspect ratio)",
    "stage": "the FSN RoI stage over computed maps: feature, 9 + 3 bank maps, merge",
    "rois": "100 and 8000 RoIs",
    "channels": "16, 128 and 256 channels",
    "banks": "banks of 1, 25 and 49 maps",
    "sampling": "sampling ratio 0 (adaptive)",
    "threads": "one thread",
    "scaling": "ours against ours: more maps, more RoIs, fewer threads",
}


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: group/what/.../layout/pass.
        setting: where on the benchmark's axes it lies.
        backward: forward and backward, or forward alone.
        build: makes the tensors and the tasks.
    """

    name: str
    setting: Setting
    backward: bool
    build: Callable[[], Comparison]


@dataclass(frozen=True)
class Scaling:
    """Ours at several settings; the first is what the others are compared with.

    Attributes:
        tasks: per label the setting and what makes the task.
    """

    name: str
    backward: bool
    tasks: Mapping[str, tuple[Setting, Callable[[], Task]]]


AnyRow = Row | Scaling
Make = Callable[[Setting], Comparison]


def pass_name(backward: bool) -> str:
    return "forward+backward" if backward else "forward"


def _row(name: str, make: Make, setting: Setting, backward: bool) -> Row:
    full = f"{name}/{setting.layout}/{pass_name(backward)}"
    return Row(full, setting, backward, partial(make, setting))


def _layouts(setting: Setting) -> list[Setting]:
    return [replace(setting, layout=layout) for layout in LAYOUTS]


def _all(name: str, make: Make, base: Setting) -> Iterator[Row]:
    for setting in _layouts(base):
        for backward in (False, True):
            yield _row(name, make, setting, backward)


def _sweep(name: str, make: Make, base: Setting) -> Iterator[Row]:
    """Forward in both layouts, the slow backward in one."""
    for setting in _layouts(base):
        yield _row(name, make, setting, False)
    yield _row(name, make, base, True)


def _plain_and_stage(name: str, base: Setting) -> Iterator[Row]:
    yield from _sweep(f"{name}/plain", work.plain, base)
    yield from _sweep(f"{name}/stage", partial(work.stage, naive=False), base)


def _position_sensitive(base: Setting) -> Iterator[Row]:
    for channels in (10, 21):
        yield from _all(f"ps/{channels}", work.position_sensitive, replace(base, channels=channels))


def _pools(base: Setting) -> Iterator[Row]:
    yield from _all("pool/max", work.max_pooling, base)
    for channels in (10, 21):
        setting = replace(base, channels=channels)
        yield from _all(f"pool/average/{channels}", work.average_pooling, setting)


def _banks(base: Setting) -> Iterator[Row]:
    for name, make in (("9", work.sub_region_bank), ("3", work.ratio_bank)):
        yield from _all(f"bank/{name}", make, base)


def _stages(base: Setting) -> Iterator[Row]:
    for merge in work.MERGES:
        make = partial(work.stage, merge=merge, naive=merge == "multiply")
        yield from _all(f"stage/{merge}", make, base)


def _axes(base: Setting) -> Iterator[Row]:
    for rois in (100, 8000):
        yield from _plain_and_stage(f"rois/{rois}", replace(base, rois=rois))
    for channels in (16, 128, 256):
        yield from _plain_and_stage(f"channels/{channels}", replace(base, channels=channels))
    for grid in (1, 5, 7):
        make = partial(work.sub_region_bank, grid=grid, naive=False)
        yield from _sweep(f"banks/{grid * grid}", make, base)
    yield from _plain_and_stage("sampling/0", replace(base, sampling_ratio=0))
    if base.threads > 1:
        yield from _plain_and_stage("threads/1", replace(base, threads=1))


def _ours(make: Make, setting: Setting) -> Task:
    return make(setting).tasks[OURS]


def _scaling(
    name: str, settings: dict[str, tuple[Setting, Make]], backward: bool = False
) -> Scaling:
    tasks = {
        label: (setting, partial(_ours, make, setting))
        for label, (setting, make) in settings.items()
    }
    layout = next(iter(settings.values()))[0].layout
    return Scaling(f"scaling/{name}/{layout}/{pass_name(backward)}", backward, tasks)


def _scalings(base: Setting) -> Iterator[Scaling]:
    bank = {
        f"maps: {grid * grid}": partial(work.sub_region_bank, grid=grid, naive=False)
        for grid in (1, 7)
    }
    both: dict[str, Make] = {"plain": work.plain, "stage": work.stage}
    for setting in _layouts(base):
        yield _scaling("banks", {label: (setting, make) for label, make in bank.items()})
        for name, make in both.items():
            more = replace(setting, rois=8 * setting.rois)
            counts = {f"RoIs: {s.rois}": (s, make) for s in (setting, more)}
            yield _scaling(f"rois/{name}", counts)
    for setting in _layouts(base) if base.threads > 1 else ():
        for name, make in both.items():
            one = replace(setting, threads=1)
            teams = {f"threads: {s.threads}": (s, make) for s in (setting, one)}
            for backward in (False, True):
                yield _scaling(f"threads/{name}", teams, backward)


def all_rows(base: Setting) -> list[AnyRow]:
    """Every row of the benchmark around a base setting, group by group."""
    return [
        *_all("plain", work.plain, base),
        *_position_sensitive(base),
        *_pools(base),
        *_banks(base),
        *_stages(base),
        *_axes(base),
        *_scalings(base),
    ]


def select(rows: Sequence[AnyRow], wanted: Sequence[str]) -> list[AnyRow]:
    """Rows whose name is, or begins with, one of the wanted ones: "stage", "stage/sum/nchw".

    Raises:
        ValueError: a wanted name fits no row.
    """
    for name in wanted:
        if not any(_fits(row, name) for row in rows):
            raise ValueError(f"--rows {name!r} fits no row; the groups are {', '.join(GROUPS)}")
    return [row for row in rows if not wanted or any(_fits(row, name) for name in wanted)]


def _fits(row: AnyRow, name: str) -> bool:
    return f"{row.name}/".startswith(f"{name.rstrip('/')}/")
