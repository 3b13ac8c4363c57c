"""Files of start weights are read as plain tensors only."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from fsn_d2.modeling.backbone.weights import read_state_dict


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_a_state_dict_is_found_bare_or_under_its_usual_keys(tmp_path, wrap) -> None:
    state = {"a.weight": torch.arange(3.0)}
    path = tmp_path / "weights.pth"
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    read = read_state_dict(str(path), "KEY")
    assert list(read) == ["a.weight"]
    assert torch.equal(read["a.weight"], state["a.weight"])


def test_arrays_of_a_zoo_become_tensors(tmp_path) -> None:
    array = np.arange(6, dtype="f4").reshape(2, 3)
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"a.weight": array}, "__author__": "someone"}))
    read = read_state_dict(str(path), "KEY")
    assert torch.equal(read["a.weight"], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))


def test_code_in_a_file_does_not_run(tmp_path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weight": Payload()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"KEY.*weights\.pth.*posix\.mkdir"):
        read_state_dict(str(tmp_path / "weights.pth"), "KEY")
    assert not (tmp_path / "ran").exists()


def test_other_content_and_missing_files_are_refused(tmp_path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"KEY.*a list where a dict"):
        read_state_dict(str(tmp_path / "list.pth"), "KEY")
    torch.save({"state_dict": [1]}, tmp_path / "inner.pth")
    with pytest.raises(ValueError, match=r"KEY.*holds a list as 'state_dict'"):
        read_state_dict(str(tmp_path / "inner.pth"), "KEY")
    with pytest.raises(FileNotFoundError, match=r"KEY: no file at.*nothing\.pth"):
        read_state_dict(str(tmp_path / "nothing.pth"), "KEY")
