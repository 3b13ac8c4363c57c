# The values of configs/fsn_Lite0_digits.yaml.
from pathlib import Path

from fsn_d2.lazy import lazy_config

_parts = lazy_config(Path(__file__).parents[1] / "fsn_Lite0_digits.yaml")
model, dataloader, optimizer, lr_multiplier, train = _parts
