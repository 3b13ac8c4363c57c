#!/usr/bin/env python
"""Trains and evaluates from a LazyConfig file, Detectron2's newer style of configs.

Such a file is code: run only those that you trust.
"""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict

from detectron2.engine import default_setup

from fsn_d2.engine import argument_parser, check_launch, launch, one_line_errors
from fsn_d2.lazy import evaluate, load_lazy_config, train
from fsn_d2.lazy.loop import build_trained_model, prepare_training, register_data

EXAMPLE = """examples:
  python tools/lazyconfig_train_net.py --config-file configs/lazy/fsn_R50.py --num-gpus 8
  python tools/lazyconfig_train_net.py --config-file configs/lazy/fsn_R50.py --eval-only \\
      train.init_checkpoint=output/model_final.pth
  python tools/lazyconfig_train_net.py --config-file configs/lazy/fsn_Lite0_digits.py \\
      model.roi_heads.box_banks.channels=20"""


def main(args: Namespace) -> OrderedDict:
    with one_line_errors():
        on_cpu = ["train.device=cpu"] if args.num_processes else []
        cfg = load_lazy_config(args.config_file, [*args.opts, *on_cpu])
        default_setup(cfg, args)
        register_data(cfg, eval_only=args.eval_only)
        if args.eval_only:
            model = build_trained_model(cfg, resume=args.resume)
        else:
            prepared = prepare_training(cfg, resume=args.resume)
    return evaluate(cfg, model) if args.eval_only else train(cfg, prepared)


if __name__ == "__main__":
    args = argument_parser(epilog=EXAMPLE).parse_args()
    with one_line_errors():
        check_launch(args)
    launch(main, args)
