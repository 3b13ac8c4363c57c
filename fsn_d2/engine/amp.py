"""Where mixed precision can be trained."""

from __future__ import annotations


def require_device_of_amp(enabled: bool, device: str, key: str) -> None:
    """
    Args:
        enabled: whether mixed precision is asked for.
        device: to train on, as torch names it.
        key: of the config, that asks.

    Raises:
        ValueError: mixed precision is asked for without a GPU.
    """
    if enabled and not device.startswith("cuda"):
        raise ValueError(
            f"{key} needs a CUDA GPU, and the device is {device!r}. Train in float32 with {key} "
            "False."
        )
