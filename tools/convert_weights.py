#!/usr/bin/env python
"""Converts a weights file between .safetensors (to share), .pth and .pkl, running no code of it."""

from __future__ import annotations

import argparse

from fsn_d2.checkpoint import convert_weights
from fsn_d2.engine import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help=".pth, .pyth, .pkl or .safetensors")
    parser.add_argument("target", help=".safetensors, .pth or .pkl; is replaced where it exists")
    args = parser.parse_args()
    with one_line_errors():
        count = convert_weights(args.source, args.target)
    print(f"{args.target}: {count} tensors; MODEL.WEIGHTS takes its path")


if __name__ == "__main__":
    main()
