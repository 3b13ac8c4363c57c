"""Config files as text: what is written is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fsn_d2.data.config_delta import WIDTH, Setting, to_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.integers() | st.floats(allow_nan=False) | st.booleans() | TEXT,
    lambda children: st.lists(children, max_size=4),
)


def render(*settings: Setting) -> str:
    return to_yaml(settings, Path("/base/b.yaml"), Path("/base/mine/m.yaml"), "what it is")


def test_keys_of_one_node_come_together() -> None:
    text = render(
        Setting("A.B", 1, "the first reason"), Setting("C", "x"), Setting("A.D.E", [1, [2.5]])
    )
    assert text == (
        "# What it is.\n_BASE_: ../b.yaml\nA:\n  # The first reason.\n  B: 1\n  D:\n"
        "    E: [1, [2.5]]\nC: x\n"
    )


def test_long_reasons_are_wrapped() -> None:
    lines = render(Setting("A.B", 1, "word " * 60)).splitlines()
    comments = [line for line in lines if line.startswith("  # ")]
    assert len(comments) > 2
    assert max(map(len, comments)) <= WIDTH + 2


def test_of_a_key_set_twice_the_last_value_counts_and_tuples_are_lists() -> None:
    text = render(Setting("A.B", 1), Setting("A.C", 2), Setting("A.B", ((3, 4), [(5,)])))
    assert yaml.safe_load(text)["A"] == {"B": [[3, 4], [[5]]], "C": 2}


@given(VALUES)
def test_any_value_is_read_back(value) -> None:
    text = render(Setting("NODE.KEY", value, "because"), Setting("NODE.LAST", 1))
    assert yaml.safe_load(text)["NODE"] == {"KEY": value, "LAST": 1}


@pytest.mark.parametrize(
    "name", ["yes", "null", "1", "1e3", "a: b", "#", "'", "🐈", "x\ny", "", "a\x85b", "\u2028"]
)
def test_class_names_stay_text(name: str) -> None:
    assert yaml.safe_load(render(Setting("CLASSES", [name])))["CLASSES"] == [name]
