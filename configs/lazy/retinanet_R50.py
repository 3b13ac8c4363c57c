# The values of configs/retinanet_R50.yaml.
from pathlib import Path

from fsn_d2.lazy import lazy_config

_parts = lazy_config(Path(__file__).parents[1] / "retinanet_R50.yaml")
model, dataloader, optimizer, lr_multiplier, train = _parts
