# The values of configs/faster_rcnn_Lite0_digits.yaml.
from pathlib import Path

from fsn_d2.lazy import lazy_config

_parts = lazy_config(Path(__file__).parents[1] / "faster_rcnn_Lite0_digits.yaml")
model, dataloader, optimizer, lr_multiplier, train = _parts
