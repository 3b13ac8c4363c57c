"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsn_d2.checkpoint import Checkpointer, writing
from fsn_d2.checkpoint.writing import disk_is_full, remove_leftovers, whole_file

ROOT = Path(__file__).parents[2]


def filled(value: float) -> nn.Module:
    model = nn.Linear(300, 100)
    nn.init.constant_(model.weight, value)
    return model


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------- one file


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert contents(tmp_path) == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path, "w") as file:
        file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert contents(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        size = os.fstat(descriptor).st_size if name != tmp_path.name else None
        done.append(("flush", name, size))
        fsync(descriptor)

    def watched_replace(source: str, target: Any) -> None:
        done.append(("rename", Path(target).name, None))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with whole_file(tmp_path / "file") as file:
        file.write(b"12345")
    assert done == [
        ("flush", "file.partial", 5),
        ("rename", "file", None),
        ("flush", tmp_path.name, None),
    ]


def test_a_relative_name_without_a_folder_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with whole_file("file", "w") as file:
        file.write("text")
    assert (tmp_path / "file").read_text() == "text"


KILLED_WHILE_WRITING = """
import sys, time
from fsn_d2.checkpoint.writing import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"new")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_write_leaves_the_old_file_and_its_rest_is_removed_later(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    (tmp_path / "other.txt").write_text("mine")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert remove_leftovers(tmp_path) == ["model.pth.partial"]
    assert contents(tmp_path) == ["model.pth", "other.txt"]
    for name in ("last_checkpoint.partial", "download.zip.partial"):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == ["last_checkpoint.partial"]
    assert remove_leftovers(tmp_path) == []


def test_a_file_system_that_cannot_flush_folders_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "absent") == []


# ---------------------------------------------------------------------------- a full disk


class SmallDisk:
    """A file that takes a number of bytes, then says what a full disk says."""

    def __init__(self, file: Any, space: int, code: int) -> None:
        self._file, self._space, self._code = file, space, code

    def write(self, data: Any) -> int:
        self._space -= len(data)
        if self._space < 0:
            raise OSError(self._code, os.strerror(self._code))
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the bytes that a file may have when `whole_file` writes it, and the error beyond."""

    def limit(size: int, code: int = errno.ENOSPC) -> None:
        def small_open(*args: Any) -> SmallDisk:
            return SmallDisk(builtins.open(*args), size, code)

        monkeypatch.setattr(writing, "open", small_open, raising=False)

    return limit


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("size", [0, 10, 5_000, 100_000])
def test_a_full_disk_is_said_once_and_leaves_the_previous_checkpoint(
    size: int, code: int, tmp_path: Path, space: Any
) -> None:
    checkpointer = Checkpointer(filled(1.0), str(tmp_path))
    checkpointer.save("model_0000004", iteration=4)
    before = contents(tmp_path)
    space(size, code)
    nn.init.constant_(checkpointer.model.weight, 2.0)
    with pytest.raises(OSError, match=r"OUTPUT_DIR .* is full.*--resume") as caught:
        checkpointer.save("model_0000009", iteration=9)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "model_0000004.pth") in str(caught.value)
    assert contents(tmp_path) == before == ["last_checkpoint", "model_0000004.pth"]
    model = filled(0.0)
    rest = Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 4
    assert (model.weight == 1.0).all()


def test_a_name_of_the_last_checkpoint_that_does_not_fit_leaves_the_old_name(
    tmp_path: Path, space: Any
) -> None:
    checkpointer = Checkpointer(filled(1.0), str(tmp_path))
    checkpointer.save("first")
    space(3)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.tag_last_checkpoint("second.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "first.pth"
    assert checkpointer.last_checkpoint == str(tmp_path / "first.pth")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        checkpointer = Checkpointer(filled(1.0), str(disk))
        checkpointer.save("first")
        with pytest.raises(OSError, match="is full"):
            for number in range(5):
                checkpointer.save(f"model_{number}")
        name = (disk / "last_checkpoint").read_text()
        assert torch.load(disk / name, weights_only=True)["model"]["weight"].sum() == 30_000
        assert not list(disk.glob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_other_errors_stay_what_they_are(tmp_path: Path, space: Any) -> None:
    space(0, errno.EIO)
    with pytest.raises(OSError) as caught:
        Checkpointer(filled(1.0), str(tmp_path)).save("model")
    assert caught.value.errno == errno.EIO


def test_lack_of_space_is_recognised_behind_other_errors() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert disk_is_full(full)
    try:
        try:
            raise full
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  (as torch.save does)
    except RuntimeError as error:
        assert disk_is_full(error)
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk_is_full(ValueError("No space left on device"))


# ---------------------------------------------------------------------------- checkpoints


def test_the_last_checkpoint_is_never_one_that_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(filled(1.0), str(tmp_path))
    checkpointer.save("first")

    def load_the_last() -> None:
        name = (tmp_path / "last_checkpoint").read_text()
        assert name in ("first.pth", "second.pth")
        torch.load(tmp_path / name, weights_only=True)

    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (load_the_last(), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (load_the_last(), replace(a, b)))
    checkpointer.save("second")
    load_the_last()
    assert (tmp_path / "last_checkpoint").read_text() == "second.pth"
    assert checkpointer.last_checkpoint == str(tmp_path / "second.pth")


def test_a_process_that_does_not_save_writes_nothing(tmp_path: Path) -> None:
    checkpointer = Checkpointer(filled(1.0), str(tmp_path), save_to_disk=False)
    checkpointer.save("model")
    assert contents(tmp_path) == []
    assert checkpointer.last_checkpoint == str(tmp_path / "model.pth")  # which another one wrote
    with checkpointer.aside():
        checkpointer.save("best")
    assert checkpointer.last_checkpoint == str(tmp_path / "model.pth")


def test_files_can_be_read_by_others_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    Checkpointer(filled(1.0), str(tmp_path)).save("model")
    assert (tmp_path / "model.pth").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
