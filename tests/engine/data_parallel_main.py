"""A program for test_launch.py: does one thing in several processes and leaves what it found.

python data_parallel_main.py MODE FOLDER --num-processes 2
"""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from fsn_d2.engine import argument_parser, launch, load_config

CONFIG = Path(__file__).parents[2] / "configs" / "fsn_Lite0_BCCD.yaml"
STEPS = 20


def tiny_config() -> CfgNode:
    opts = ["MODEL.TIMM.PRETRAINED", "", "MODEL.FPN.OUT_CHANNELS", "32"]
    opts += ["MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.DEVICE", "cpu"]
    return load_config(str(CONFIG), opts)


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_config()).train()


def batch_of(rank: int, step: int = 0) -> list[dict]:
    """Two images of this rank's shard."""
    rng = torch.Generator().manual_seed(100 * step + rank)
    batch = []
    for _ in range(2):
        target = Instances((64, 96))
        corner = 40 * torch.rand(3, 2, generator=rng)
        sides = 8 + 12 * torch.rand(3, 2, generator=rng)
        target.gt_boxes = Boxes(torch.cat([corner, corner + sides], dim=1))
        target.gt_classes = torch.randint(3, (3,), generator=rng)
        image = torch.randint(256, (3, 64, 96), generator=rng)
        batch.append({"image": image, "instances": target})
    return batch


def backward(model: nn.Module, rank: int, step: int = 0) -> None:
    torch.manual_seed(1000 * step + rank)  # which proposals are sampled
    with EventStorage():
        sum(model(batch_of(rank, step)).values()).backward()


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def gradients(folder: Path) -> None:
    model = tiny_model()
    parallel = defaults.create_ddp_model(model, broadcast_buffers=False)
    backward(parallel, comm.get_rank())
    torch.save(gradients_of(model), folder / f"gradients{comm.get_rank()}.pt")


def steps(folder: Path) -> None:
    model = tiny_model()
    parallel = defaults.create_ddp_model(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(parallel, comm.get_rank(), step)
        optimizer.step()
    torch.save(model.state_dict(), folder / f"weights{comm.get_rank()}.pt")


def without_proposals(folder: Path) -> None:
    """Rank 1 has neither proposals nor objects."""
    model = tiny_model()
    rank = comm.get_rank()
    if rank == 1:
        forward = model.proposal_generator.forward

        def none(*args, **kwargs):
            proposals, losses = forward(*args, **kwargs)
            return [p[:0] for p in proposals], losses

        model.proposal_generator.forward = none
    parallel = defaults.create_ddp_model(model, broadcast_buffers=False)
    for step in range(3):
        batch = batch_of(rank, step)
        if rank == 1:
            for sample in batch:
                sample["instances"] = sample["instances"][:0]
        with EventStorage():
            sum(parallel(batch).values()).backward()
    without = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    (folder / f"without{rank}.txt").write_text(",".join(without))


def killed(folder: Path) -> None:
    """Rank 1 dies while rank 0 waits for it."""
    parallel = defaults.create_ddp_model(tiny_model(), broadcast_buffers=False)
    backward(parallel, comm.get_rank())
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    backward(parallel, comm.get_rank(), step=1)


def failed(folder: Path) -> None:
    if comm.get_rank() == 1:
        raise RuntimeError("rank 1 has had enough")
    comm.synchronize()


def places(folder: Path) -> None:
    """Where every process thinks it is, as Detectron2 tells."""
    found = (comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size())
    names = comm.all_gather(found)
    (folder / f"places{comm.get_rank()}.txt").write_text(repr(names))


def thread_names() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def work(folder: Path) -> None:
    """All that goes well: starting processes takes longer than this."""
    for part in (places, gradients, steps, without_proposals):
        part(folder)


MODES = {f.__name__: f for f in (work, killed, failed, places)}


def main(args: Namespace) -> None:
    MODES[args.mode](Path(args.folder))


if __name__ == "__main__":
    mode, folder, *rest = sys.argv[1:]
    args = argument_parser().parse_args(rest)
    args.mode, args.folder = mode, folder
    launch(main, args)
    if "RANK" in os.environ:  # torchrun's: the process in which the work was done
        (Path(folder) / f"threads{os.environ['RANK']}.txt").write_text(",".join(thread_names()))
