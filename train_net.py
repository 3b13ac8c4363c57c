#!/usr/bin/env python
"""Trains and evaluates any model of this project.

    python train_net.py --config-file configs/fsn_R50.yaml
    python train_net.py --config-file configs/fsn_R50.yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import OrderedDict

import torch
from detectron2.engine import default_argument_parser, launch

from fsn_d2.engine import evaluate, setup, train


def main(args: Namespace) -> OrderedDict:
    try:
        cfg = setup(args)
    except (FileNotFoundError, ImportError, KeyError, ValueError) as error:
        sys.exit(f"error: {error.args[0] if isinstance(error, KeyError) else error}")
    if args.eval_only:
        return evaluate(cfg)
    return train(cfg, resume=args.resume)


if __name__ == "__main__":
    args = default_argument_parser(epilog=__doc__).parse_args()
    gpus = torch.cuda.device_count()
    if args.num_gpus > max(gpus, 1):
        sys.exit(f"error: --num-gpus {args.num_gpus}, but this machine shows {gpus} GPUs.")
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
