"""Starting data-parallel processes: on GPUs by NCCL, on the CPU by gloo, or under torchrun.

Detectron2 v0.6 starts processes on GPUs alone, and puts models of any device on GPUs when it makes
them data-parallel. Everything else of it works on the CPU too.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_argument_parser, defaults
from detectron2.utils import comm

from ..machine import usable_cores
from .interruption import passing_on_sigterm

__all__ = ["argument_parser", "check_launch", "launch"]

# Until when a process waits for the others: rank 0 may be evaluating meanwhile.
TIMEOUT = timedelta(minutes=30)
MainFunction = Callable[[argparse.Namespace], Any]


class _Place(NamedTuple):
    """Of a process among all.

    Attributes:
        rank, processes: among all machines.
        local_rank, local_processes: on its machine.
        url: where they meet.
    """

    rank: int
    processes: int
    local_rank: int
    local_processes: int
    url: str


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's options, with `--num-processes` for training on the CPU.

    Args:
        epilog: text below the help; None: Detectron2's examples.
    """
    parser = default_argument_parser(epilog=epilog)
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--num-processes",
        type=int,
        default=0,
        help="training processes per machine on the CPU; --num-gpus is for GPUs",
    )
    return parser


def launch(main: MainFunction, args: argparse.Namespace) -> Any:
    """Runs `main(args)` in as many processes as are asked for; in this one where that is one.

    Where torchrun or another launcher has set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE,
    this process is one of theirs. When one process fails the others are ended: by SIGTERM, and by
    SIGKILL half a minute later.

    Args:
        main: at the top level of a module.
        args: from `argument_parser`.

    Returns:
        what `main` returns, where it runs in this process.

    Raises:
        ValueError: as `check_launch`.
        SystemExit: `main` exited, in this process or in another one of this machine.
        torch.multiprocessing.ProcessExitedException: a process was killed; names it.
        torch.multiprocessing.ProcessRaisedException: it raised; holds its traceback.
    """
    if (place := _place_from_environment()) is not None:
        return _run(main, args, place)
    check_launch(args)
    count = args.num_processes or args.num_gpus
    if count * args.num_machines <= 1:
        return main(args)
    url = _free_address() if args.dist_url == "auto" else args.dist_url
    with passing_on_sigterm():
        mp.start_processes(_worker, args=(main, args, count, url), nprocs=count)
    return None


def check_launch(args: argparse.Namespace) -> None:
    """Compares the options that say where to run with the machine, before anything starts.

    Args:
        args: from `argument_parser`.

    Raises:
        ValueError: the machine lacks the GPUs, or the options contradict each other.
    """
    gpus = torch.cuda.device_count()
    if args.num_processes and args.num_gpus > 1:
        raise ValueError("--num-processes is for the CPU, --num-gpus for GPUs; give one of them.")
    if args.num_gpus > max(gpus, 1):
        raise ValueError(
            f"--num-gpus {args.num_gpus}, but this machine shows {gpus} GPUs. On the CPU several "
            "processes are asked for by --num-processes."
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError(
            "--dist-url: several machines need one address for all, tcp://HOST:PORT of the first."
        )


def _place_from_environment() -> _Place | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not set(names) <= set(os.environ):
        return None
    rank, processes, local_rank, local_processes = (int(os.environ[name]) for name in names)
    return _Place(rank, processes, local_rank, local_processes, "env://")


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def _worker(
    local_rank: int, main: MainFunction, args: argparse.Namespace, count: int, url: str
) -> None:
    rank = args.machine_rank * count + local_rank
    _run(main, args, _Place(rank, args.num_machines * count, local_rank, count, url))


def _run(main: MainFunction, args: argparse.Namespace, place: _Place) -> Any:
    on_gpu = torch.cuda.is_available() and not args.num_processes
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    else:
        _prepare_cpu(place.local_processes)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=place.url,
        world_size=place.processes,
        rank=place.rank,
        timeout=TIMEOUT,
    )
    _tell_detectron2(place)
    comm.synchronize()
    result, exit_code = _result_or_exit(main, args)
    _leave()
    if exit_code is not None:
        sys.exit(exit_code)
    return result


def _result_or_exit(main: MainFunction, args: argparse.Namespace) -> tuple[Any, Any]:
    """What `main` returns, and what it exits with: the exception would keep the model's group."""
    try:
        return main(args), None
    except SystemExit as end:
        return None, end.code


def _leave() -> None:
    """Ends this process's groups and their threads.

    gloo's threads end with the last reference to their group. One that outlives the interpreter
    and frees a tensor aborts the process: https://github.com/pytorch/pytorch/pull/179291
    """
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    if hasattr(comm, "create_local_process_group"):  # after v0.6
        comm.create_local_process_group.cache_clear()
    gc.collect()


def _prepare_cpu(local_processes: int) -> None:
    """Shares the cores, and keeps Detectron2 from naming GPUs to torch."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(usable_cores() // local_processes, 1))
    if not isinstance(defaults.create_ddp_model, functools.partial):
        on_any_device = functools.partial(defaults.create_ddp_model, device_ids=None)
        defaults.create_ddp_model = on_any_device


def _tell_detectron2(place: _Place) -> None:
    """Which processes share a machine."""
    if hasattr(comm, "create_local_process_group"):  # after v0.6
        comm.create_local_process_group(place.local_processes)
        return
    for first in range(0, place.processes, place.local_processes):
        ranks = list(range(first, first + place.local_processes))
        group = dist.new_group(ranks)
        if place.rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
