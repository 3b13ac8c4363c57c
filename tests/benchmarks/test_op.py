"""The op's benchmark: its peers compute what we compute, and its numbers are worked out right."""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import memory, timing
from op_benchmark import peers, report, rows, scene, work
from op_benchmark.scene import Setting

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = Setting(rois=12, channels=4, height=12, width=16, threads=1)
WORK = {
    "plain": work.plain,
    "position sensitive": work.position_sensitive,
    "sub-region": work.sub_region_bank,
    "one map": partial(work.sub_region_bank, grid=1),
    "49 maps": partial(work.sub_region_bank, grid=7),
    "ratio": work.ratio_bank,
    "max pooling": work.max_pooling,
    **{f"stage {merge}": partial(work.stage, merge=merge) for merge in work.MERGES},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", rows.LAYOUTS)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("make", WORK.values(), ids=WORK)
def test_peers_equal_ours_with_their_gradients(make, sampling_ratio: int, layout: str) -> None:
    comparison = make(replace(SMALL, sampling_ratio=sampling_ratio, layout=layout))
    assert len(comparison.tasks) >= 2
    ours = comparison.ours
    value, gradients = ours.run_forward(), ours.run_both()[1]
    assert value.abs().max() > 0.1
    for name, task in comparison.tasks.items():
        torch.testing.assert_close(task.run_forward(), value, atol=1e-4, rtol=1e-4, msg=name)
        assert task.run_forward().is_contiguous() == value.is_contiguous(), name
        for theirs, mine in zip(task.run_both()[1], gradients, strict=True):
            scale = float(mine.abs().max())
            torch.testing.assert_close(task.as_ours(theirs), mine, atol=1e-4 * scale, rtol=1e-3)


@pytest.mark.parametrize("backward", [False, True])
def test_a_peer_that_differs_is_refused(backward: bool) -> None:
    comparison = work.plain(SMALL)
    wrong = partial(peers.plain, rois=scene.proposals(SMALL, seed=1), setting=SMALL)
    comparison.tasks["another"] = work.Task(wrong, comparison.ours.inputs)
    with pytest.raises(RuntimeError, match="another differs from ours by"):
        comparison.check(backward)


@pytest.mark.parametrize("layout", rows.LAYOUTS)
def test_the_maps_come_in_the_layout_of_the_setting(layout: str) -> None:
    x = work.stage(replace(SMALL, layout=layout)).ours.inputs[1]
    assert x.shape == (1, 9 * 4, 12, 16)
    assert x.is_contiguous() == (layout == "nchw")
    assert (x.stride(1) == 1) == (layout == "channels_last")


def test_proposals_lie_in_the_image_and_have_the_sizes_of_a_detector() -> None:
    setting = Setting(rois=4000)
    rois = scene.proposals(setting)
    assert torch.equal(rois, scene.proposals(setting))
    left, top, right, bottom = rois[:, 1:].unbind(1)
    assert (left >= 0).all() and (top >= 0).all()
    assert (right <= 1088).all() and (bottom <= 800).all()
    inside = (left > 0) & (top > 0) & (right < 1088) & (bottom < 800)
    width, height = (right - left)[inside], (bottom - top)[inside]
    sides, shapes = (width * height).sqrt(), height / width
    assert 31.9 < sides.min() < 35 and 400 < sides.max() < 512.1
    assert 0.299 < shapes.min() < 0.33 and 2.7 < shapes.max() < 3.01
    index = scene.ratio_index(rois).flatten()
    wide = (bottom - top) / (right - left)
    assert (wide[index == 0] < 0.7072).all() and (wide[index == 2] > 1.4142).all()
    assert set(index.tolist()) == {0, 1, 2}


def test_sub_regions_of_seven_bins() -> None:
    index = scene.sub_region_index(SMALL, 3)
    assert index[0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert index[0, :, 0].tolist() == [0, 0, 3, 3, 3, 6, 6]
    assert scene.sub_region_index(SMALL, 7).flatten().tolist() == list(range(49))


def test_bags_need_a_fixed_number_of_samples() -> None:
    with pytest.raises(ValueError, match="sampling_ratio must be positive, got 0"):
        peers.Bags(scene.proposals(SMALL), replace(SMALL, sampling_ratio=0))


def test_the_least_traffic_is_counted_once() -> None:
    comparison = work.plain(SMALL)
    maps, rois, index, result = 4 * 12 * 16 * 4, 12 * 5 * 4, 8, 12 * 4 * 49 * 4
    assert comparison.moved_bytes(False) == maps + rois + index + result
    assert comparison.moved_bytes(True) == 2 * (maps + rois + index + result)


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    baseline, times = [1.0, 2.0, 4.0, 5.0, 100.0], [10.0, 10.0, 20.0, 30.0, 100.0]
    # Rounds: 10, 5, 5, 6, 1; medians: 20 and 4.
    assert timing.ratio(times, baseline) == timing.Spread(5.0, 5.0, 6.0)
    assert timing.spread(baseline) == timing.Spread(4.0, 2.0, 5.0)
    assert timing.spread([3.0]) == timing.Spread(3.0, 3.0, 3.0)


def test_contenders_take_turns_and_every_second_round_goes_backwards() -> None:
    order: list[str] = []
    contenders = {name: timing.Contender(partial(order.append, name), 1) for name in "abc"}

    def clock(call) -> float:
        call()
        return float(len(order))

    times = timing.take_turns(contenders, clock, seconds=0.0, rounds=(3, 9))
    assert "".join(order) == "abc" + "cba" + "abc"
    assert times == {"a": [1.0, 6.0, 7.0], "b": [2.0, 5.0, 8.0], "c": [3.0, 4.0, 9.0]}


def test_the_number_of_rounds_is_bounded_above() -> None:
    contenders = {"a": timing.Contender(lambda: None, 1)}
    times = timing.take_turns(contenders, timing.cpu_clock, seconds=60.0, rounds=(1, 4))
    assert len(times["a"]) == 4


def test_every_contender_runs_on_its_threads() -> None:
    seen: dict[str, set[int]] = {"one": set(), "two": set()}
    contenders = {
        name: timing.Contender(lambda name=name: seen[name].add(torch.get_num_threads()), threads)
        for name, threads in (("one", 1), ("two", 2))
    }
    timing.take_turns(contenders, timing.cpu_clock, seconds=0.0, rounds=(3, 3))
    assert seen == {"one": {1}, "two": {2}}
    assert torch.get_num_threads() == 1


def test_the_peak_is_replayed_from_allocations() -> None:
    assert memory.replay([5, 10, -5, 3, -10]) == memory.Memory(peak=15, results=3)
    assert memory.replay([]) == memory.Memory(0, 0)
    assert memory.replay([4, 4]).beyond_results == 0


def test_the_peak_of_a_call_on_the_cpu() -> None:
    def call() -> torch.Tensor:
        first, second = torch.empty(1000), torch.empty(2000)
        del first
        result = torch.empty(250)
        del second
        return result

    for _ in range(2):  # a second measurement sees nothing of the first
        assert memory.cpu_memory(call) == memory.Memory(peak=12000, results=1000)


def test_rows_are_selected_by_whole_parts_of_their_names() -> None:
    every = rows.all_rows(Setting())
    names = [row.name for row in every]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} == set(rows.GROUPS)
    assert rows.select(every, []) == every
    picked = [row.name for row in rows.select(every, ["stage/multiply", "ps/10/nchw/forward"])]
    assert picked == ["ps/10/nchw/forward"] + [n for n in names if n.startswith("stage/multiply/")]
    with pytest.raises(ValueError, match="'stage/mul' fits no row; the groups are plain, ps"):
        rows.select(every, ["stage/mul"])


def test_the_axes_cover_what_they_promise() -> None:
    every = [row for row in rows.all_rows(Setting()) if isinstance(row, rows.Row)]
    settings = [row.setting for row in every]
    assert {s.rois for s in settings} == {100, 1000, 8000}
    assert {s.channels for s in settings} == {10, 16, 21, 40, 128, 256}
    assert {s.sampling_ratio for s in settings} == {0, 2}
    assert {s.threads for s in settings} == {1, 2}
    one_thread = rows.all_rows(Setting(threads=1))
    assert not any(row.name.startswith(("threads", "scaling/threads")) for row in one_thread)


def test_the_headlines_name_rows_that_exist() -> None:
    names = {row.name for row in rows.all_rows(Setting())}
    assert names >= {name for wanted in report.HEADLINES.values() for name in wanted}


def run_op(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["op.py", *arguments])
    monkeypatch.syspath_prepend(BENCHMARKS)  # as python does for a script
    runpy.run_path(str(BENCHMARKS / "op.py"), run_name="__main__")


def test_the_command_prints_tables_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "results.json"
    wanted = ["plain/nchw", "scaling/rois/plain/nchw"]
    run_op(["--quick", "--threads", "1", "--out", str(out), "--rows", *wanted], monkeypatch)
    printed = capsys.readouterr().out
    assert printed.startswith("3 comparisons, about ")
    assert max(map(len, printed.replace(str(out), "").splitlines())) <= 110
    assert "== summary: plain RoIAlign" in printed
    results = json.loads(out.read_text())
    assert set(results) == {"facts", "base", "bandwidth", "arithmetic_speedup", "rows"}
    facts = results["facts"]
    assert facts["torch"] == torch.__version__ and facts["threads"] == 1
    assert {"date", "command", "commit", "torchvision", "cpu", "gpu"} <= set(facts)
    assert results["bandwidth"]["1"].keys() == {"cache", "big"}
    names = ["plain/nchw/forward", "plain/nchw/forward+backward", "scaling/rois/plain/nchw/forward"]
    assert [row["name"] for row in results["rows"]] == names


def test_the_json_of_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run_op(["--quick", "--threads", "1", "--out", str(out), "--rows", "plain/nchw"], monkeypatch)
    results = json.loads(out.read_text())
    row = results["rows"][0]
    assert (row["pass"], row["baseline"], row["rounds"]) == ("forward", "ours", 2)
    assert row["setting"] == results["base"] and row["setting"]["layout"] == "nchw"
    assert set(row["contenders"]) == {"ours", "torchvision roi_align", "embedding_bag"}
    assert set(row["ratios"]) == {"torchvision roi_align", "embedding_bag"}
    ours, peer = row["contenders"]["ours"], row["contenders"]["torchvision roi_align"]
    quotient = peer["milliseconds"]["median"] / ours["milliseconds"]["median"]
    assert math.isclose(row["ratios"]["torchvision roi_align"]["median"], quotient)
    rate = row["moved_bytes"] / ours["milliseconds"]["median"] * 1000
    assert math.isclose(ours["bytes_per_second"], rate)
    for size, copied in results["bandwidth"]["1"].items():
        assert math.isclose(ours["share_of_copy_bandwidth"][size], rate / copied)
    result_bytes = 20 * 4 * 49 * 4
    for it in row["contenders"].values():
        assert it["peak_bytes"] - it["peak_bytes_without_results"] == result_bytes


def test_a_wrong_argument_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^error: --rows 'plane' fits no row"):
        run_op(["--rows", "plane"], monkeypatch)
    with pytest.raises(SystemExit, match=r"^error: --threads must be at least 1, got 0"):
        run_op(["--threads", "0"], monkeypatch)
