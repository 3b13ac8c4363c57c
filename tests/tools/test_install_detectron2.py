"""The Detectron2 install helper: its patches, its refusals, and which of its three ways it takes.
Nothing here uses the network or changes the environment; pip and the probes are replaced.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


@pytest.fixture
def helper(monkeypatch):
    # By path: an installed package may be named `tools` as well.
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def write_archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def member(name: str, content: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def test_a_patch_replaces_every_occurrence_and_nothing_else(helper, tmp_path):
    tree = write_tree(
        tmp_path, {"a/b.py": "x = np.int)\ny = np.int)\nz = np.int64)\n", "c.py": "n"}
    )
    helper.apply_patches(tree, (helper.Patch("a/b.py", "np.int)", "int)"),))
    assert (tree / "a/b.py").read_text() == "x = int)\ny = int)\nz = np.int64)\n"
    assert (tree / "c.py").read_text() == "n"


def test_patches_of_one_file_are_applied_in_order(helper, tmp_path):
    tree = write_tree(tmp_path, {"f.py": "one"})
    helper.apply_patches(
        tree, (helper.Patch("f.py", "one", "two"), helper.Patch("f.py", "two", "three"))
    )
    assert (tree / "f.py").read_text() == "three"


def test_a_missing_text_is_an_error_that_names_file_and_text(helper, tmp_path):
    tree = write_tree(tmp_path, {"a.py": "import this\n"})
    with pytest.raises(helper.InstallError, match=r"a\.py.*'import that'"):
        helper.apply_patches(tree, (helper.Patch("a.py", "import that", ""),))
    assert (tree / "a.py").read_text() == "import this\n"


def test_a_missing_file_is_an_error_that_names_it(helper, tmp_path):
    with pytest.raises(helper.InstallError, match=r"b\.py"):
        helper.apply_patches(tmp_path, (helper.Patch("b.py", "x", "y"),))


def test_the_guard_lets_a_module_without_its_library_import(helper, tmp_path):
    tree = write_tree(tmp_path, {"m.py": "from detectron2 import _C\nvalue = 1\n"})
    helper.apply_patches(tree, (helper._guard("m.py"),))
    # A package `detectron2` without _C, whatever is installed.
    write_tree(tree, {"detectron2/__init__.py": ""})
    code = "import m; print(m._C, m.value)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert run.stdout.split() == ["None", "1"], run.stderr


def test_the_archive_must_have_the_pinned_hash(helper, tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"changed on the way")
    with pytest.raises(helper.InstallError, match=helper.SDIST_SHA256):
        helper.check_sha256(archive)
    helper.check_sha256(archive, hashlib.sha256(b"changed on the way").hexdigest())


def test_an_archive_with_a_wrong_hash_is_neither_unpacked_nor_installed(
    helper, monkeypatch, tmp_path
):
    commands = []

    def fake_pip(*arguments):
        commands.append(arguments[0])
        destination = next(a for a in arguments if a.startswith("--dest=")).removeprefix("--dest=")
        write_archive(Path(destination) / "pb1-detectron2-0.6.tar.gz", member("top/setup.py"))

    monkeypatch.setattr(helper, "pip", fake_pip)
    monkeypatch.setattr(helper, "unpack", lambda *_: pytest.fail("unpacked in spite of its hash"))
    with pytest.raises(helper.InstallError, match="SHA-256"):
        helper.install_from_pypi()
    assert commands == ["download"]


def test_pip_itself_is_told_the_hash(helper, monkeypatch, tmp_path):
    # pip runs the archive's setup.py for its metadata: our own check alone would come too late.
    def fake_pip(*arguments):
        assert "--require-hashes" in arguments
        assert f"--hash=sha256:{helper.SDIST_SHA256}" in (tmp_path / "requirements.txt").read_text()
        (tmp_path / "a.tar.gz").touch()

    monkeypatch.setattr(helper, "pip", fake_pip)
    assert helper.download_sdist(tmp_path) == tmp_path / "a.tar.gz"


def test_unpacking_keeps_names_and_contents(helper, tmp_path):
    folder = member("top/pkg", type=tarfile.DIRTYPE)
    archive = write_archive(tmp_path / "a.tar.gz", folder, member("top/pkg/m.py", b"m = 1"))
    tree = helper.unpack(archive, tmp_path / "out")
    assert tree == tmp_path / "out" / "top"
    assert (tree / "pkg/m.py").read_bytes() == b"m = 1"


@pytest.mark.parametrize(
    "unsafe",
    [
        member("../outside.py", b"x"),
        member("top/../../outside.py", b"x"),
        member("/outside.py", b"x"),
        member("top/link", type=tarfile.SYMTYPE, linkname="/etc"),
        member("top/link", type=tarfile.LNKTYPE, linkname="../outside.py"),
        member("top/device", type=tarfile.CHRTYPE),
    ],
    ids=["parent", "parent-inside", "absolute", "symlink", "hardlink", "device"],
)
def test_unpacking_refuses_what_could_leave_the_folder(helper, tmp_path, unsafe):
    archive = write_archive(tmp_path / "a.tar.gz", member("top/a.py", b"a"), unsafe)
    with pytest.raises(helper.InstallError, match="unsafe"):
        helper.unpack(archive, tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("outside.py"))


def test_unpacking_wants_one_top_folder(helper, tmp_path):
    archive = write_archive(tmp_path / "a.tar.gz", member("one/a.py"), member("two/b.py"))
    with pytest.raises(helper.InstallError, match=r"\['one', 'two'\]"):
        helper.unpack(archive, tmp_path / "out")


def test_the_project_built_is_pure_python_and_complete(helper, tmp_path):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    tree = write_tree(
        tmp_path,
        {
            "setup.py": "raise SystemExit('compiles C++')",
            "detectron2/__init__.py": "",
            "detectron2/modeling/backbone/__init__.py": "",
            "detectron2/model_zoo/__init__.py": "",
            "detectron2/model_zoo/configs/common/optim.py": "",
            "tools/__init__.py": "",
        },
    )
    helper.write_build_files(tree)
    assert not (tree / "setup.py").exists()
    project = tomllib.loads((tree / "pyproject.toml").read_text())
    assert (project["project"]["name"], project["project"]["version"]) == ("detectron2", "0.6")
    packages = set(project["tool"]["setuptools"]["packages"])
    # No top-level `tools`, and the configs are data: LazyConfig loads them by path.
    assert packages == {
        "detectron2",
        "detectron2.modeling.backbone",
        "detectron2.model_zoo",
        "detectron2.projects.point_rend",
        "detectron2.projects.deeplab",
        "detectron2.projects.panoptic_deeplab",
    }


@pytest.mark.parametrize(
    ("installed", "reachable", "builds", "ways"),
    [
        (True, True, True, []),
        (False, True, True, ["repository"]),
        (False, True, False, ["repository", "pypi"]),
        (False, False, True, ["pypi"]),
    ],
    ids=["kept", "official", "official-does-not-build", "out-of-reach"],
)
def test_the_first_way_that_works_is_taken(
    helper, monkeypatch, capsys, installed, reachable, builds, ways
):
    taken = []

    def from_repository():
        taken.append("repository")
        if not builds:
            raise helper.InstallError("no compiler")

    monkeypatch.setattr(
        helper, "find_installed", lambda: "0.6 in /somewhere" if installed or taken else None
    )
    monkeypatch.setattr(helper, "repository_answers", lambda: reachable)
    monkeypatch.setattr(helper, "install_from_repository", from_repository)
    monkeypatch.setattr(helper, "install_from_pypi", lambda: taken.append("pypi"))
    assert helper.main() == 0
    assert taken == ways
    assert capsys.readouterr().out.splitlines()[-1] == "Detectron2 0.6 in /somewhere"


def test_a_failure_of_the_last_way_ends_with_one_line(helper, monkeypatch, capsys):
    def from_pypi():
        raise helper.InstallError("pip download failed")

    monkeypatch.setattr(helper, "find_installed", lambda: None)
    monkeypatch.setattr(helper, "repository_answers", lambda: False)
    monkeypatch.setattr(helper, "install_from_pypi", from_pypi)
    assert helper.main() == 1
    assert capsys.readouterr().err == "error: pip download failed\n"


def test_an_installation_that_does_not_import_is_a_failure(helper, monkeypatch, capsys):
    monkeypatch.setattr(helper, "find_installed", lambda: None)
    monkeypatch.setattr(helper, "install", lambda: None)
    assert helper.main() == 1
    assert "import detectron2.layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "problem", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)], ids=["git", "time"]
)
def test_without_git_or_an_answer_the_repository_is_out_of_reach(helper, monkeypatch, problem):
    def fake_run(*_, **__):
        raise problem

    monkeypatch.setattr(helper.subprocess, "run", fake_run)
    assert not helper.repository_answers()


def test_the_probe_never_asks_for_a_password(helper, monkeypatch):
    seen = {}

    def fake_run(command, **options):
        seen.update(options, command=command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(helper.subprocess, "run", fake_run)
    assert helper.repository_answers()
    assert seen["env"]["GIT_TERMINAL_PROMPT"] == "0"
    assert seen["stdin"] == subprocess.DEVNULL
    assert seen["timeout"] <= 10
    assert seen["command"] == ["git", "ls-remote", helper.REPOSITORY, "HEAD"]


def test_pip_runs_in_this_interpreter_and_its_failure_is_an_error(helper, monkeypatch):
    commands = []

    def fake_run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(helper.subprocess, "run", fake_run)
    with pytest.raises(helper.InstallError, match="pip install something"):
        helper.pip("install", "something")
    assert commands == [[sys.executable, "-m", "pip", "install", "something"]]


def test_no_build_is_isolated_and_the_commit_is_a_full_hash(helper, monkeypatch):
    calls = []
    monkeypatch.setattr(helper, "pip", lambda *arguments: calls.append(arguments))
    helper.install_from_repository()
    (arguments,) = calls
    assert "--no-build-isolation" in arguments
    repository, _, commit = arguments[-1].rpartition("@")
    assert repository == "git+https://github.com/facebookresearch/detectron2"
    assert len(commit) == 40 and set(commit) <= set("0123456789abcdef")


def test_help_is_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0 and "Three ways" in capsys.readouterr().out
