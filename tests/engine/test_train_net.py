"""train_net.py as a user runs it: training, resuming, evaluating, and one line for a mistake."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, HookBase, default_argument_parser, hooks
from detectron2.modeling import build_model
from detectron2.utils.events import JSONWriter

import train_net
from fsn_d2.engine import Trainer, check_evaluation, load_config, setup
from fsn_d2.evaluation import evaluation_folder

ROOT = Path(__file__).parents[2]
FSN = str(ROOT / "configs" / "fsn_R50.yaml")
Args = Callable[..., Namespace]


def command(args: Namespace) -> list[str]:
    return [sys.executable, "train_net.py", "--config-file", args.config_file, *args.opts]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)


def predictions(output: Path) -> list[dict]:
    return json.loads((output / "inference" / "coco_instances_results.json").read_text())


def same(first: dict, second: dict) -> bool:
    """Equal metrics; not-a-number equals itself."""
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


# ---------------------------------------------------------------------------- as a command


def test_the_command_trains_evaluates_and_saves(tiny_args: Args, tmp_path: Path) -> None:
    result = run(command(tiny_args("fsn_R50.yaml")))
    assert result.returncode == 0, result.stderr
    output = tmp_path / "output"
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == 1
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in metrics if "total_loss" in line]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert "bbox/AP" in metrics[-1]


def test_a_mistake_on_the_command_ends_it_with_one_line_and_code_1(tiny_args: Args) -> None:
    result = run(command(tiny_args("fsn_R50.yaml", MODEL__ROI_HEADS__NUM_CLASSES=7)))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "MODEL.ROI_HEADS.NUM_CLASSES" in last


# ---------------------------------------------------------------------------- mistakes


def error_line(arguments: list[str]) -> str:
    """What train_net.py prints before it ends with code 1, which a text given to exit does."""
    with pytest.raises(SystemExit) as caught:
        train_net.main(default_argument_parser().parse_args(arguments))
    line = caught.value.code
    assert isinstance(line, str)
    assert line.startswith("error: ")
    assert "\n" not in line.strip()
    return line


@pytest.mark.parametrize("key", ["MODEL.FSN.GIRD", "MODELS.FSN", "SOLVER.MAX_ITR"])
def test_an_unknown_key_on_the_command_line(key: str) -> None:
    assert key in error_line(["--config-file", FSN, key, "3"])


def test_an_unknown_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("MODEL:\n  FSN:\n    GIRD: 3\n")
    assert "MODEL.FSN.GIRD" in error_line(["--config-file", str(path)])


def test_a_config_file_that_is_not_there() -> None:
    assert "configs/absent.yaml" in error_line(["--config-file", "configs/absent.yaml"])


def test_a_key_without_its_value() -> None:
    assert "MODEL.FSN.GRID" in error_line(["--config-file", FSN, "MODEL.FSN.GRID"])


def test_a_value_of_another_type() -> None:
    assert "SOLVER.MAX_ITER" in error_line(["--config-file", FSN, "SOLVER.MAX_ITER", "many"])


def test_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    spec = f"('coco://{tmp_path}/absent.json:{tmp_path}',)"
    opts = ["DATASETS.TRAIN", spec, "DATASETS.TEST", spec, "OUTPUT_DIR", str(tmp_path)]
    assert str(tmp_path / "absent.json") in error_line(["--config-file", FSN, *opts])


def test_another_number_of_classes_than_the_data_has(tiny_args: Args) -> None:
    args = tiny_args("fsn_R50.yaml", MODEL__ROI_HEADS__NUM_CLASSES=7)
    line = error_line(["--config-file", args.config_file, *args.opts])
    assert "MODEL.ROI_HEADS.NUM_CLASSES" in line
    assert "7" in line and "80" in line


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_weights_that_are_not_there_are_named(flags: tuple, tiny_args: Args) -> None:
    args = tiny_args("fsn_R50.yaml", *flags, small=True, MODEL__WEIGHTS="absent.pth")
    line = error_line(["--config-file", args.config_file, *flags, *args.opts])
    assert "MODEL.WEIGHTS" in line and "absent.pth" in line


def test_weights_that_are_refused_end_several_processes_with_that_line(
    tiny_args: Args, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no weights")
    args = tiny_args("fsn_R50.yaml", small=True, MODEL__WEIGHTS=path)
    whole = command(args)
    result = run([*whole[:4], "--num-processes", "2", *whole[4:]])
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"error: {path} was not loaded" in result.stderr


# ---------------------------------------------------------------------------- resuming


class Interrupt(HookBase):
    """Ends the training like Ctrl-C, after the given number of iterations."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.after:
            raise KeyboardInterrupt


@pytest.fixture
def written_every_iteration(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[HookBase]]:
    """Writes metrics.json every iteration; the hooks listed under "extra" run last."""
    built, added = Trainer.build_hooks, {"extra": []}

    def build(trainer: Trainer) -> list[HookBase]:
        all_hooks = built(trainer)
        for hook in all_hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = 1
                hook._writers = [w for w in hook._writers if isinstance(w, JSONWriter)]
        return [*all_hooks, *added["extra"]]

    monkeypatch.setattr(Trainer, "build_hooks", build)
    return added


def iterations(output: Path) -> list[int]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [entry["iteration"] for line in lines if "total_loss" in (entry := json.loads(line))]


def saved_iteration(path: Path) -> int:
    return torch.load(path, weights_only=False)["iteration"]


def test_a_resumed_training_repeats_no_iteration_and_ends_at_the_same_total(
    tiny_args: Args, tmp_path: Path, written_every_iteration: dict[str, list[HookBase]]
) -> None:
    changes = {"SOLVER__MAX_ITER": 10, "SOLVER__CHECKPOINT_PERIOD": 5, "DATASETS__TEST": ()}
    output = tmp_path / "output"
    written_every_iteration["extra"] = [Interrupt(after=5)]
    with pytest.raises(KeyboardInterrupt):
        train_net.main(tiny_args("fsn_R50.yaml", small=True, **changes))
    assert sorted(set(iterations(output))) == [0, 1, 2, 3, 4]
    assert saved_iteration(output / (output / "last_checkpoint").read_text()) == 4
    before = (output / "metrics.json").read_text()

    written_every_iteration["extra"] = []
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", small=True, **changes))
    assert (output / "metrics.json").read_text().startswith(before)
    resumed = iterations(output)[len(before.splitlines()) :]
    assert sorted(set(resumed)) == [5, 6, 7, 8, 9]
    assert saved_iteration(output / "model_final.pth") == 9


def test_without_resume_training_starts_anew(tiny_args: Args, tmp_path: Path) -> None:
    for _ in range(2):
        cfg = setup(tiny_args("fsn_R50.yaml", small=True, SOLVER__MAX_ITER=1, DATASETS__TEST=()))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        assert trainer.start_iter == 0
        trainer.train()


def test_a_new_training_says_that_the_folder_has_checkpoints_of_another(
    tiny_args: Args, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"SOLVER__MAX_ITER": 1, "DATASETS__TEST": ()}
    said = []
    for _ in range(2):
        cfg = setup(tiny_args("fsn_R50.yaml", small=True, **changes))
        logging.getLogger("fsn_d2").propagate = True  # default_setup ends it
        caplog.clear()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        said.append([r.getMessage() for r in caplog.records if r.levelname == "WARNING"])
        trainer.train()
    assert not any("earlier training" in line for line in said[0])
    assert any("model_final.pth is of an earlier training" in line for line in said[1])


def test_the_metrics_of_an_earlier_training_are_set_aside(tiny_args: Args, tmp_path: Path) -> None:
    output, left = tmp_path / "output", []
    for number in (3, 2, 1):
        changes = {"SOLVER__MAX_ITER": number, "DATASETS__TEST": ()}
        train_net.main(tiny_args("fsn_R50.yaml", small=True, **changes))
        assert max(iterations(output)) == number - 1  # and none of the longer one before
        left.append((output / "metrics.json").read_text())
    missing = {"MODEL__WEIGHTS": tmp_path / "nowhere.pth"}
    with pytest.raises(SystemExit):
        train_net.main(tiny_args("fsn_R50.yaml", small=True, **missing))
    names = ("metrics.1.json", "metrics.2.json", "metrics.json")
    assert [(output / name).read_text() for name in names] == left
    assert sorted(path.name for path in output.glob("metrics*")) == sorted(names)


# ---------------------------------------------------------------------------- results


DETECTS = {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0, "SOLVER__MAX_ITER": 1}
AUGMENTED = {
    "TEST__AUG__ENABLED": True,
    "TEST__AUG__MIN_SIZES": (48, 64),
    "TEST__AUG__MAX_SIZE": 96,
}


def test_training_gives_back_the_metrics_and_eval_only_gives_them_again(
    tiny_args: Args, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    trained = train_net.main(tiny_args("fsn_R50.yaml", small=True, **DETECTS))
    found = predictions(output)
    assert found
    weights = {"MODEL__WEIGHTS": output / "model_final.pth", "OUTPUT_DIR": tmp_path / "again"}
    args = tiny_args("fsn_R50.yaml", "--eval-only", small=True, **DETECTS, **weights)
    evaluated = train_net.main(args)
    assert predictions(tmp_path / "again") == found
    assert math.isfinite(evaluated["bbox"]["AP"])
    assert same(evaluated, trained)


def test_eval_only_with_resume_takes_the_last_checkpoint(tiny_args: Args, tmp_path: Path) -> None:
    """As Detectron2's own train_net.py does; where there is none, MODEL.WEIGHTS."""
    trained = train_net.main(tiny_args("fsn_R50.yaml", small=True, **DETECTS))
    found = predictions(tmp_path / "output")
    again = tiny_args("fsn_R50.yaml", "--eval-only", "--resume", small=True, **DETECTS)
    (tmp_path / "output" / "inference" / "coco_instances_results.json").unlink()
    assert same(train_net.main(again), trained)
    assert predictions(tmp_path / "output") == found != []
    elsewhere = {"MODEL__WEIGHTS": tmp_path / "output" / "model_final.pth"}
    changes = {**DETECTS, **elsewhere, "OUTPUT_DIR": tmp_path / "new"}
    args = tiny_args("fsn_R50.yaml", "--eval-only", "--resume", small=True, **changes)
    assert same(train_net.main(args), trained)


@pytest.mark.parametrize(("expected", "ends"), [(50.0, False), (200.0, True)])
def test_results_are_held_to_what_is_expected_of_them(
    expected: float, ends: bool, tiny_args: Args, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pth"
    args = tiny_args("fsn_R50.yaml", small=True)
    torch.save(
        {"model": build_model(load_config(args.config_file, args.opts)).state_dict()}, weights
    )
    wanted = f"[['bbox', 'AP', {expected}, 51.0]]"  # within 51 of it; an AP lies in 0..100
    args = tiny_args(
        "fsn_R50.yaml",
        "--eval-only",
        small=True,
        MODEL__WEIGHTS=weights,
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0,
        TEST__EXPECTED_RESULTS=wanted,
    )
    with pytest.raises(SystemExit) if ends else nullcontext():
        train_net.main(args)


def test_a_checkpoint_of_no_period_is_refused(tiny_args: Args) -> None:
    args = tiny_args("fsn_R50.yaml", small=True, SOLVER__CHECKPOINT_PERIOD=0)
    with pytest.raises(SystemExit, match=r"SOLVER\.CHECKPOINT_PERIOD: .* got 0"):
        train_net.main(args)


def test_a_batch_that_cannot_be_scaled_is_refused(tiny_args: Args) -> None:
    batch = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__REFERENCE_WORLD_SIZE": 8}
    with pytest.raises(
        SystemExit, match=r"error: SOLVER\.REFERENCE_WORLD_SIZE: .* 4 images .*got 8"
    ):
        train_net.main(tiny_args("fsn_R50.yaml", small=True, **batch))


@pytest.mark.parametrize("config", ["fsn_mask_R50.yaml", "fsn_R50_C4.yaml", "fsn_cascade_R50.yaml"])
def test_test_time_augmentation_has_results_of_its_own(config: str, tiny_args: Args) -> None:
    mask = "cascade" not in config
    opts = {**DETECTS, **AUGMENTED, "MODEL__MASK_ON": mask}
    results = train_net.main(tiny_args(config, "--eval-only", small=True, **opts))
    kinds = {"bbox", "segm"} if mask else {"bbox"}
    assert set(results) == kinds | {f"{kind}_TTA" for kind in kinds}
    assert math.isfinite(results["bbox_TTA"]["AP"])


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
@pytest.mark.parametrize(
    ("config", "name"), [("retinanet_R50.yaml", "RetinaNet"), ("fsaf_R50.yaml", "FSAF")]
)
def test_test_time_augmentation_that_cannot_be_is_refused_before_training(
    config: str, name: str, flags: tuple[str, ...], tiny_args: Args
) -> None:
    said = rf"^error: TEST\.AUG\.ENABLED is True, and MODEL\.META_ARCHITECTURE is '{name}'"
    with pytest.raises(SystemExit, match=said):
        train_net.main(tiny_args(config, *flags, small=True, **AUGMENTED))


@pytest.mark.parametrize("key", ["MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"])
def test_test_time_augmentation_is_refused_for_what_detectron2_has_none_for(key: str) -> None:
    opts = ["TEST.AUG.ENABLED", "True", "DATASETS.TEST", "()", key]
    check_evaluation(load_config("configs/fsn_R50.yaml", [*opts, "False"]))
    with pytest.raises(ValueError, match=rf"TEST\.AUG\.ENABLED is True, and {key} is True"):
        check_evaluation(load_config("configs/fsn_R50.yaml", [*opts, "True"]))


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_a_test_set_without_a_known_evaluator_is_refused_before_training(
    flags: tuple[str, ...], tiny_args: Args
) -> None:
    MetadataCatalog.get("set_of_this_test").evaluator_type = "lvis"
    DatasetCatalog.register("set_of_this_test", list)
    args = tiny_args("fsn_R50.yaml", *flags, small=True, DATASETS__TEST=("set_of_this_test",))
    try:
        with pytest.raises(SystemExit, match=r"^error: data set 'set_of_this_test'.*'lvis'"):
            train_net.main(args)
    finally:
        DatasetCatalog.remove("set_of_this_test")
        MetadataCatalog.remove("set_of_this_test")


def test_training_ends_with_test_time_augmentation_where_asked(tiny_args: Args) -> None:
    results = train_net.main(tiny_args("fsn_R50.yaml", small=True, **DETECTS, **AUGMENTED))
    assert set(results) == {"bbox", "bbox_TTA"}


def test_results_of_several_sets_go_by_set(
    tiny_args: Args, coco_spec: Callable, tmp_path: Path
) -> None:
    sets = (coco_spec(3, images=3, name="one"), coco_spec(3, images=1, name="two"))
    args = tiny_args("fsn_R50.yaml", "--eval-only", small=True, DATASETS__TEST=sets, **DETECTS)
    assert set(train_net.main(args)) == set(sets)
    cfg = load_config(args.config_file, args.opts)
    found = [
        json.loads((Path(evaluation_folder(cfg, name)) / "coco_instances_results.json").read_text())
        for name in sets
    ]
    assert [{entry["image_id"] for entry in entries} for entries in found] == [{1, 2, 3}, {1}]


def test_several_sets_with_test_time_augmentation_go_by_set(
    tiny_args: Args, coco_spec: Callable
) -> None:
    sets = (coco_spec(3, images=2, name="one"), coco_spec(3, images=1, name="two"))
    opts = {**DETECTS, **AUGMENTED, "DATASETS__TEST": sets}
    results = train_net.main(tiny_args("fsn_R50.yaml", "--eval-only", small=True, **opts))
    assert set(results) == {*sets, *(f"{name}_TTA" for name in sets)}


def test_mixed_precision_without_a_gpu_is_refused_for_training_alone(tiny_args: Args) -> None:
    opts = {"SOLVER__AMP__ENABLED": True, "MODEL__DEVICE": "cpu"}
    with pytest.raises(
        SystemExit, match=r"^error: SOLVER\.AMP\.ENABLED needs a CUDA GPU"
    ) as caught:
        train_net.main(tiny_args("fsn_R50.yaml", small=True, **opts))
    assert "\n" not in str(caught.value)
    assert train_net.main(tiny_args("fsn_R50.yaml", "--eval-only", small=True, **opts))


def test_detectron2s_predictor_works_with_the_config(
    small_cfg: Callable, detector: Callable, tmp_path: Path, random_image: torch.Tensor
) -> None:
    cfg = small_cfg(MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0)
    model = detector(cfg)
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    cfg.DATASETS.TEST = ()
    # As large as the config asks for, so that the predictor does not resize it.
    found = DefaultPredictor(cfg)(random_image.permute(1, 2, 0).numpy())["instances"]
    with torch.no_grad():
        (expected,) = model([{"image": random_image}])
    expected = expected["instances"]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, expected.scores)
