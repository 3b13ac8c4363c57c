"""Data: the quick-start digits, a user's own sets, and a mapper that survives broken images."""

from .datasets import register_datasets
from .digits import build_digits, register_digits
from .mapper import TolerantMapper
from .proposals import check_proposal_files

__all__ = [
    "TolerantMapper",
    "build_digits",
    "check_proposal_files",
    "register_datasets",
    "register_digits",
]
