"""Suggestions: worked by hand for known boxes, and configs that load and train."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsn_d2.data.config_delta import to_yaml
from fsn_d2.data.suggestion import (
    anchor_sizes,
    base_config,
    batch_size,
    input_size,
    spread_ratios,
    suggest,
)
from fsn_d2.data.survey import survey_datasets
from fsn_d2.engine import load_config
from fsn_d2.machine import Machine

from .small_sets import write_image, write_split, write_xml

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = Machine(cores=2)


def load_base(machine: Machine):
    return load_config(str(CONFIGS / base_config(machine)))


def gpus(count: int, gib: float) -> Machine:
    return Machine(count, gib, 16)


def write_set(root: Path, *, images: int, size: tuple[int, int], box: tuple[int, int]) -> str:
    """Images of one size with one box each."""
    ids = [f"i{k}" for k in range(images)]
    for name in ids:
        write_image(root / "JPEGImages" / f"{name}.jpg", size)
        write_xml(root, name, [("cat", (1, 1, *box))], size=size)
    write_split(root, "some", ids)
    return f"voc://{root}:some"


@pytest.fixture
def suggested(tmp_path: Path, make_cfg):
    """Keys and values for a set of equal images, on a machine."""

    def make(machine: Machine, images: int = 30, size=(320, 240), box=(64, 64)):
        spec = write_set(tmp_path / "set", images=images, size=size, box=box)
        survey = survey_datasets(make_cfg((spec,), (spec,)))
        base = load_base(machine)
        settings = suggest(survey, machine, base, train=[spec], test=[spec], output_dir="out")
        return {s.key: s.value for s in settings}, settings

    return make


def test_the_base_follows_the_machine() -> None:
    assert base_config(CPU) == "Base-Lite0-FPN.yaml"
    assert base_config(gpus(1, 24)) == "fsn_R50.yaml"


@pytest.mark.parametrize(
    "machine, images",
    [
        (CPU, 4),
        (gpus(1, 80), 16),
        (gpus(1, 24), 6),
        (gpus(1, 11), 3),
        (gpus(1, 2), 1),
        (gpus(4, 24), 16),
        (gpus(8, 80), 16),
        (gpus(3, 80), 15),
    ],
)
def test_the_rate_is_scaled_with_the_batch(suggested, machine: Machine, images: int) -> None:
    values, _ = suggested(machine, images=1)
    base = load_base(machine)
    assert values["SOLVER.IMS_PER_BATCH"] == images == batch_size(machine, base)
    assert values["SOLVER.IMS_PER_BATCH"] % max(1, machine.gpus) == 0
    per_image = base.SOLVER.BASE_LR / base.SOLVER.IMS_PER_BATCH
    assert values["SOLVER.BASE_LR"] == pytest.approx(images * per_image)


def test_the_schedule_of_a_small_set_on_a_cpu_is_bccds(suggested) -> None:
    values, _ = suggested(CPU)
    assert values["SOLVER.MAX_ITER"] == 300
    assert values["SOLVER.STEPS"] == [210, 270]
    assert values["SOLVER.WARMUP_ITERS"] == 50
    assert values["TEST.EVAL_PERIOD"] == 100


def test_the_schedule_grows_with_the_data(suggested) -> None:
    values, _ = suggested(CPU, images=400)
    assert values["SOLVER.MAX_ITER"] == 400  # four times through, 4 images each
    assert suggested(gpus(1, 7), images=400)[0]["SOLVER.MAX_ITER"] == 2400  # 12 times, 2 each


def test_small_boxes_get_a_larger_input_on_a_cpu(suggested) -> None:
    # At 240 of 720 pixels the boxes are 5 pixels wide: twice that size makes them 10.
    values, _ = suggested(CPU, images=3, size=(960, 720), box=(15, 15))
    assert values["INPUT.MIN_SIZE_TRAIN"] == [480]
    assert (values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]) == (480, 800)
    # Images of 300 pixels are not blown up; large boxes need nothing.
    assert suggested(CPU, images=3, size=(400, 300), box=(5, 5))[0]["INPUT.MIN_SIZE_TRAIN"] == [300]
    assert "INPUT.MIN_SIZE_TRAIN" not in suggested(CPU, images=3)[0]


def test_the_input_of_the_base_stays_on_gpus(tmp_path: Path, make_cfg) -> None:
    spec = write_set(tmp_path / "set", images=2, size=(100, 80), box=(4, 4))
    survey = survey_datasets(make_cfg((spec,)))
    machine = gpus(1, 80)
    assert input_size(survey, machine, load_base(machine)) == (736, 1333)


def test_anchors_move_to_the_boxes_of_their_level() -> None:
    sides = np.array([20.0] * 30 + [52.0] * 99 + [300.0] * 20)
    assert anchor_sizes(sides, [16, 32, 64, 128, 256]) == [20, 32, 52, 128, 256]


def test_outer_levels_do_not_leave_their_stride() -> None:
    sides = np.array([2.0] * 50 + [5000.0] * 50)
    assert anchor_sizes(sides, [32, 64, 128]) == [round(32 / math.sqrt(2)), 64, 181]


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=40), st.integers(2, 5))
def test_ratios_are_spaced_evenly_and_hold_the_middle_of_the_data(ratios, count: int) -> None:
    found = spread_ratios(np.array(ratios), count)
    steps = np.diff(np.log(found))
    assert len(found) == count
    assert steps == pytest.approx(steps[0], abs=0.02)  # three digits are kept
    assert steps[0] > 0.5 * math.log(2) - 0.02
    low, high = np.quantile(ratios, (0.1, 0.9))
    assert found[0] <= low * 1.01 and found[-1] >= high * 0.99


def test_ratios_of_squares_and_of_a_wide_spread() -> None:
    assert spread_ratios(np.ones(9)) == [0.707, 1, 1.41]
    assert spread_ratios(np.array([0.25] * 5 + [4.0] * 5)) == [0.25, 1, 4]


@pytest.mark.parametrize("machine", [CPU, gpus(2, 24)])
def test_the_file_loads_with_the_suggested_values(suggested, tmp_path: Path, machine) -> None:
    values, settings = suggested(machine)
    path = tmp_path / "deep" / "my.yaml"
    path.parent.mkdir()
    path.write_text(to_yaml(settings, CONFIGS / base_config(machine), path, "a heading"))
    cfg = load_config(str(path))
    assert cfg.MODEL.ROI_HEADS.NAME == "FSNROIHeads"
    assert cfg.MODEL.ROI_BOX_HEAD.NUM_FC == 1
    for key, value in values.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert (list(node) if isinstance(node, tuple) else node) == value, key
