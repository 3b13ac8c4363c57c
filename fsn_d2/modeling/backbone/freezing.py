"""Freezing of backbones: the kind of batch normalisation, and the first stages held fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Name of a normalisation, as in Detectron2, to the function that brings a module's batch
# normalisation layers into that form and returns the module (or what takes its place).
NormConversions = Mapping[str, Callable[[nn.Module], nn.Module]]


def convert_norm(network: nn.Module, norm: str, conversions: NormConversions, key: str) -> None:
    """Convert every batch normalisation layer inside ``network``, in place.

    Args:
        network: must not itself be a batch normalisation layer.
        norm: a key of ``conversions``.
        conversions: the conversions that the network's library offers.
        key: the config key that gave ``norm``, for the error message.

    Raises:
        ValueError: unknown ``norm``.
    """
    if norm not in conversions:
        raise ValueError(f"{key}: {norm!r} is unknown; expected one of {sorted(conversions)}.")
    conversions[norm](network)


def require_freeze_at(freeze_at: int) -> None:
    """Raise ValueError unless ``freeze_at`` lies in 0 (nothing) .. 5 (everything up to res5)."""
    if not 0 <= freeze_at <= 5:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; expected 0 (nothing is frozen), 1 (the "
            "stem), 2 (the stem and res2), ..., 5 (everything)."
        )


def modules_through(network: nn.Module, last: str) -> list[str]:
    """Return the names of all modules registered up to ``last``, with all that is inside it."""
    names = [name for name, _ in network.named_modules()]
    inside = [i for i, name in enumerate(names) if name == last or name.startswith(f"{last}.")]
    return names[: inside[-1] + 1]


def modules_before(network: nn.Module, first: str) -> list[str]:
    """Return the names of all modules registered before ``first``."""
    names = [name for name, _ in network.named_modules()]
    return names[: names.index(first)]


def freeze_modules(network: nn.Module, names: Iterable[str], conversions: NormConversions) -> None:
    """Hold the own parameters of the named modules fixed, in place.

    A module's children count only if they are named too. Batch normalisation layers become frozen
    ones, so that their statistics stay fixed as well, as in Detectron2's ResNets.
    """
    for name in names:
        module = network.get_submodule(name)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False
        if isinstance(module, _BatchNorm):
            _replace(network, name, conversions["FrozenBN"](module))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
