#!/usr/bin/env python
"""Trains and evaluates any model of this project."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict

from fsn_d2.engine import (
    argument_parser,
    build_trained_model,
    build_trainer,
    check_evaluation,
    check_launch,
    evaluate,
    launch,
    one_line_errors,
    setup,
    train,
)


def main(args: Namespace) -> OrderedDict:
    with one_line_errors():
        cfg = setup(args)
        if args.eval_only:
            check_evaluation(cfg)
            model = build_trained_model(cfg, resume=args.resume)
        else:
            trainer = build_trainer(cfg, resume=args.resume)
    return evaluate(cfg, model) if args.eval_only else train(trainer)


if __name__ == "__main__":
    args = argument_parser().parse_args()
    with one_line_errors():
        check_launch(args)
    launch(main, args)
