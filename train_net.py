#!/usr/bin/env python
"""Trains and evaluates any model of this project."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import OrderedDict

import torch
from detectron2.engine import default_argument_parser, launch

from fsn_d2.engine import evaluate, one_line_errors, setup, train


def main(args: Namespace) -> OrderedDict:
    with one_line_errors():
        cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    return train(cfg, resume=args.resume)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
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
