"""A report of an evaluation: one HTML file that needs no server and no network."""

from .facts import build_facts
from .inputs import Evaluated, read_evaluated
from .page import render_page

__all__ = ["Evaluated", "build_facts", "read_evaluated", "render_page"]
