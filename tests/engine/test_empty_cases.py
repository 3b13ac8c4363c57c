"""Images of hardly any pixels, nothing to learn from, no classes: every system trains, detects, or
refuses it clearly, and no process waits for another one for ever.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import train_net
from fsn_d2.engine import Predictor, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
SYSTEMS = {
    "FSN": "fsn_Lite0_BCCD.yaml",
    "Faster R-CNN": "faster_rcnn_Lite0_BCCD_fast_roipool.yaml",
    "R-FCN": "rfcn_Lite0_BCCD.yaml",
    "Light-Head": "lighthead_Lite0_BCCD.yaml",
    "RetinaNet": "retinanet_Lite0_BCCD.yaml",
    "FSAF": "fsaf_Lite0_BCCD.yaml",
    "FSAF joint": "fsaf_joint_Lite0_BCCD.yaml",
}
EVERY_SYSTEM = pytest.mark.parametrize("system", SYSTEMS)
OPTS = {
    "MODEL.TIMM.PRETRAINED": "",
    "MODEL.FPN.OUT_CHANNELS": 64,  # group normalisation needs two values in each of 32 groups
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.DEVICE": "cpu",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
}
PIXEL, LYING, STANDING = (1, 1), (1, 10_000), (10_000, 1)  # height, width


def tiny_config(system: str, **changes: object) -> CfgNode:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    opts = [str(item) for pair in (OPTS | named).items() for item in pair]
    return load_config(str(CONFIGS / SYSTEMS[system]), opts)


def tiny_model(system: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_config(system))


def sample(size: tuple[int, int], boxes: list[list[float]], seed: int = 0) -> dict:
    """A random image of that height and width, with objects of class 0."""
    rng = torch.Generator().manual_seed(seed)
    target = Instances(size)
    target.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    target.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    image = torch.randint(256, (3, *size), generator=rng, dtype=torch.uint8)
    return {"image": image, "instances": target}


def losses_of(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # which proposals are sampled
    with EventStorage():
        return model(batch)


# ---------------------------------------------------------------------------- images


@pytest.mark.parametrize("size", [PIXEL, LYING])
@EVERY_SYSTEM
def test_a_model_trains_on_it_and_detects(system: str, size: tuple[int, int]) -> None:
    """At its own size: the whole image is one object."""
    height, width = size
    model = tiny_model(system).train()
    losses = losses_of(model, [sample(size, [[0, 0, width, height]])])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    with torch.no_grad():
        (found,) = model.eval()([sample(size, [])])
    boxes = found["instances"].pred_boxes.tensor
    assert found["instances"].image_size == size and boxes.isfinite().all()
    limits = torch.tensor([width, height, width, height])
    assert (boxes >= 0).all() and (boxes <= limits).all()


@pytest.mark.parametrize("size", [PIXEL, LYING, STANDING])
def test_the_predictor_leaves_a_pixel_of_each_side(size: tuple[int, int]) -> None:
    predict = Predictor(tiny_config("FSN"))  # the longer side becomes 400 pixels at most
    given: list[tuple[int, int]] = []
    predict.model.register_forward_pre_hook(
        lambda model, inputs: given.append(tuple(inputs[0][0]["image"].shape[1:]))
    )
    found = predict(np.full((*size, 3), 90, np.uint8))["instances"]
    expected = {PIXEL: (240, 240), LYING: (1, 400), STANDING: (400, 1)}[size]
    assert given == [expected]
    assert found.image_size == size


def data_set(folder: Path, sizes: list[tuple[int, int]], *, objects: bool = True) -> str:
    """COCO files of gray images, whole images being the objects; the set's spec string."""
    folder.mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes, start=1):
        name = f"{number}.png"
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        box = {"bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 1 + number % 3, **box})
    content = {
        "images": images,
        "annotations": annotations if objects else annotations[:1],
        "categories": [{"id": i, "name": f"class{i}"} for i in (1, 2, 3)],
    }
    (folder / "data.json").write_text(json.dumps(content))
    return f"coco://{folder / 'data.json'}:{folder}"


@EVERY_SYSTEM
def test_a_training_goes_through_tiny_images_and_leaves_out_what_has_no_pixel_left(
    system: str, tiny_args: Callable[..., Namespace], tmp_path: Path, caplog
) -> None:
    """Most batches hold no object; the long images would be resized to nothing."""
    sizes = [PIXEL, LYING, STANDING, (1, 60), (60, 1), (2, 3)]
    spec = data_set(tmp_path / "set", sizes, objects=False)
    args = tiny_args(
        SYSTEMS[system],
        DATASETS__TRAIN=(spec,),
        DATASETS__TEST=(spec,),
        DATALOADER__FILTER_EMPTY_ANNOTATIONS=False,
        DATALOADER__ASPECT_RATIO_GROUPING=False,
        SOLVER__MAX_ITER=3,
    )
    results = train_net.main(args)
    assert "bbox" in results
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "shrinks to nothing, skipped: 2 (2.png, 3.png)" in log
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    losses = [json.loads(line).get("total_loss", 0.0) for line in lines]
    assert any(losses) and all(map(math.isfinite, losses))


# ---------------------------------------------------------------------------- classes


@EVERY_SYSTEM
@pytest.mark.parametrize("number", [0, -1])
def test_no_classes_are_refused_by_the_keys_name(system: str, number: int) -> None:
    is_dense = system in ("RetinaNet", "FSAF", "FSAF joint")
    key = f"MODEL.{'RETINANET' if is_dense else 'ROI_HEADS'}.NUM_CLASSES"
    with pytest.raises(ValueError, match=f"{key}: expected 1 or more, got {number}"):
        tiny_config(system, **{key.replace(".", "__"): number})
    other = f"MODEL.{'ROI_HEADS' if is_dense else 'RETINANET'}.NUM_CLASSES"
    tiny_config(system, **{other.replace(".", "__"): 0})  # is not read


# ---------------------------------------------------------------------------- processes


# Of every rank's image. Three have at least three positive cells: half of two would be 1, the least
# divisor, which rank 1 has by itself.
OBJECTS = [[[2.0, 4, 50, 60], [40.0, 2, 94, 62], [8.0, 8, 40, 40]], []]


def train_in_parallel(rank: int, folder: str, systems: list[str]) -> None:
    """Rank 1 has neither objects nor, from the second step on, proposals."""
    torch.set_num_threads(1)  # a forked process cannot use its parent's pool of threads
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for system in systems:
        model = tiny_model(system).train()
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        batch = [sample((64, 96), OBJECTS[rank], seed=rank)]
        for step in range(2):  # an unused parameter shows in the second
            model.zero_grad(set_to_none=True)
            if step == 1 and rank == 1:
                take_proposals_away(model)
            sum(losses_of(parallel, batch).values()).backward()
            gradients = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
            torch.save(gradients, f"{folder}/{system}_{step}_{rank}.pth")
        with torch.no_grad():  # as for the validation loss, of shares that are not equal
            found = [losses_of(parallel, batch) for _ in range(rank + 1)]
        torch.save(found[0], f"{folder}/{system}_validation_{rank}.pth")
    dist.destroy_process_group()


def take_proposals_away(model: nn.Module) -> None:
    generator = getattr(model, "proposal_generator", None)
    if generator is not None:
        generator.register_forward_hook(
            lambda module, inputs, output: ([each[:0] for each in output[0]], output[1])
        )


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int | str, int], dict]:
    """By system, step and rank."""
    folder = tmp_path_factory.mktemp("parallel")
    arguments = (str(folder), list(SYSTEMS))
    context = mp.start_processes(
        train_in_parallel, nprocs=2, args=arguments, start_method="fork", join=False
    )
    try:
        ended = any(context.join(timeout=20) for _ in range(12))
    finally:
        for process in context.processes:
            process.kill()
    assert ended, "a process waits for the other one"
    return lambda system, step, rank: torch.load(folder / f"{system}_{step}_{rank}.pth")


@EVERY_SYSTEM
@pytest.mark.parametrize("step", [0, 1], ids=["without objects", "without proposals"])
def test_a_process_without_them_learns_what_the_other_one_does(
    system: str, step: int, gradients: Callable[[str, int, int], dict]
) -> None:
    first, second = (gradients(system, step, rank) for rank in range(2))
    assert len(first) > 50
    for name, gradient in first.items():
        assert gradient is not None and gradient.isfinite().all(), name
        assert torch.equal(gradient, second[name]), name


def test_two_processes_of_fsaf_learn_as_one_does_from_both_images(
    gradients: Callable[[str, int, int], dict],
) -> None:
    """Its losses are divided by the positives of all processes, wherever the objects are."""
    model = tiny_model("FSAF").train()
    batch = [sample((64, 96), OBJECTS[rank], seed=rank) for rank in range(2)]
    sum(losses_of(model, batch).values()).backward()
    together = gradients("FSAF", 0, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = (parameter.grad - together[name]).norm()
            # Single precision moves some of these gradients by 4e-4, another divisor doubles them.
            assert difference <= 1e-2 * parameter.grad.norm().clamp(min=1e-8), name


def test_a_loss_without_gradients_is_the_same_in_any_number_of_processes(
    gradients: Callable[[str, int | str, int], dict],
) -> None:
    model = tiny_model("FSAF").train()
    with torch.no_grad():
        alone = losses_of(model, [sample((64, 96), OBJECTS[0], seed=0)])
    torch.testing.assert_close(gradients("FSAF", "validation", 0), alone)
