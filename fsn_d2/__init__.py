"""Feature Selective Networks for Detectron2.

Importing this registers the project's models with Detectron2. Without Detectron2 the op remains:
`from fsn_d2.layers import selective_roi_align`.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("detectron2"):
    from . import modeling  # noqa: F401  (registers the models)
    from .config import add_fsn_config

    __all__ = ["add_fsn_config"]
else:

    def __getattr__(name: str) -> object:
        if name == "add_fsn_config":
            raise ImportError(
                "fsn_d2.add_fsn_config needs Detectron2, which is not installed. Install it with "
                "`python tools/install_detectron2.py` from a checkout of fsn_d2, or with `pip "
                "install --no-build-isolation git+https://github.com/facebookresearch/detectron2`."
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
