# The values of configs/fsaf_R50_joint.yaml.
from pathlib import Path

from fsn_d2.lazy import lazy_config

_parts = lazy_config(Path(__file__).parents[1] / "fsaf_R50_joint.yaml")
model, dataloader, optimizer, lr_multiplier, train = _parts
