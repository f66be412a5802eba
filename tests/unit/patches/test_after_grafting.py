"""What happens to a grafted code base later: edits of its owner, a new version of the connectors, a full disk."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patches import payload
from patches.blocks import read_blocks
from patches.graft import main
from tests.support.llava_like import ARCH, BUILDER, TRAIN, llava_like, snapshot, tabs, write_tree
from tests.unit.patches.conftest import Graft

pytest.importorskip("libcst")

FOLDER = "model/llava_connectors"


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    """A package that nothing was added to yet."""
    return write_tree(llava_like(), tmp_path / "checkout/llava")


@pytest.fixture
def grafted(pristine: Path, graft: Graft) -> Path:
    """A package with the connectors."""
    assert graft(pristine, "apply")[0] == 0
    return pristine


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_edits_around_blocks_survive(grafted: Path, graft: Graft) -> None:
    wanted = write_tree(llava_like(), grafted.parent.parent / "wanted/llava")
    for root in (grafted, wanted):
        replace(root / BUILDER, "    kind = ", "    print(config)\n    kind = ")
        replace(root / ARCH, "class MetaModel:", "SCALE = 2\n\n\nclass MetaModel:")
        replace(root / TRAIN, "@dataclass\nclass DataArguments", "# Data\n\n\n@dataclass\nclass DataArguments")
    assert graft(grafted, "apply")[0] == 0
    assert graft(grafted, "revert")[0] == 0
    assert snapshot(grafted) == snapshot(wanted)


def test_blocks_of_a_reformatted_file_are_found(grafted: Path, graft: Graft) -> None:
    """A formatter may indent otherwise, and put blank lines into a block."""
    tree = {name: (grafted / name).read_bytes() for name in (ARCH, BUILDER)}
    tabs(tree)
    write_tree({name: source.replace(b"settings\n", b"settings\n\n") for name, source in tree.items()}, grafted)
    status, printed = graft(grafted, "revert")
    assert status == 0, printed
    assert b"llava" not in (grafted / ARCH).read_bytes()


@pytest.mark.parametrize(
    ("name", "old", "new", "where", "reason"),
    [
        (f"{FOLDER}/encoding.py", "def ", "# mine\ndef ", f"{FOLDER}/encoding.py", "this file was changed or added"),
        (BUILDER, "    llava_connector =", "    x = 1\n    llava_connector =", f"{BUILDER}:18", "block was edited"),
        (BUILDER, "    # <<< llava-connectors\n", "", f"{BUILDER}:18", "has no partner"),
        (ARCH, "        # >>> llava-connectors\n", "", f"{ARCH}:24", "has no partner"),
        (TRAIN, "# <<< llava", "# >>> llava", f"{TRAIN}:13", "has no partner"),
    ],
)
def test_work_inside_what_was_inserted_is_not_lost(
    name: str, old: str, new: str, where: str, reason: str, grafted: Path, graft: Graft
) -> None:
    replace(grafted / name, old, new)
    before = snapshot(grafted)
    for mode in ("apply", "revert", "check"):
        status, printed = graft(grafted, mode)
        assert status == 1 and f"llava/{where}: " in printed and reason in printed, printed
        assert "by hand: " in printed
    assert snapshot(grafted) == before


def test_file_added_to_the_folder_is_not_lost(grafted: Path, graft: Graft) -> None:
    (grafted / FOLDER / "mine.py").write_text("x = 1\n")
    before = snapshot(grafted)
    status, printed = graft(grafted, "revert")
    assert status == 1 and f"llava/{FOLDER}/mine.py: this file was changed or added" in printed
    assert f"{FOLDER}/mine.py: changed or added" in graft(grafted, "status")[1]
    assert snapshot(grafted) == before


def test_what_was_removed_by_hand_comes_back_or_goes(pristine: Path, graft: Graft) -> None:
    before = snapshot(pristine)
    graft(pristine, "apply")
    whole = snapshot(pristine)
    (pristine / FOLDER / "encoding.py").unlink()
    write_tree({BUILDER: llava_like()[BUILDER]}, pristine)
    assert graft(pristine, "apply")[0] == 0
    assert snapshot(pristine) == whole
    shutil.rmtree(pristine / FOLDER)
    assert graft(pristine, "revert")[0] == 0
    assert snapshot(pristine) == before


def test_nothing_to_revert(pristine: Path, graft: Graft) -> None:
    """Also where somebody has a folder of the same name."""
    write_tree({f"{FOLDER}/mine.py": b"x = 1\n"}, pristine)
    before = snapshot(pristine)
    status, printed = graft(pristine, "revert")
    assert (status, "no connectors" in printed, snapshot(pristine)) == (0, True, before)
    assert "connectors: none" in graft(pristine, "status")[1]


def test_new_version_replaces_the_old_one(
    pristine: Path, graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(pristine)
    old = shutil.copytree(payload.BRIDGE, tmp_path / "old")
    (old / "gone.py").write_text("x = 1\n")
    replace(old / "encoding.py", "def ", "# older\ndef ")
    with monkeypatch.context() as patched:
        patched.setattr(payload, "BRIDGE", old)
        patched.setattr(payload, "version", lambda: "0.1")
        graft(pristine, "apply")
    assert "version 0.1" in graft(pristine, "status")[1]
    # A block of the older version had other code.
    replace(pristine / BUILDER, "build_llava_connector(config)", "build_llava_connector(config, None)")
    manifest = json.loads((pristine / FOLDER / "manifest.json").read_text())
    _, text = read_blocks((pristine / BUILDER).read_bytes())[0]
    manifest["blocks"].append(payload.digest(text))
    (pristine / FOLDER / "manifest.json").write_text(json.dumps(manifest))

    assert "replaced folder" in graft(pristine)[1]
    assert graft(pristine, "apply")[0] == 0
    assert not (pristine / FOLDER / "gone.py").exists()
    assert (pristine / FOLDER / "encoding.py").read_bytes().find(b"# older") == -1
    assert "(config, None)" not in (pristine / BUILDER).read_text()
    assert f"version {payload.version()} (this program has {payload.version()})" in graft(pristine, "status")[1]
    assert "up to date" in graft(pristine, "apply")[1]
    assert graft(pristine, "revert")[0] == 0
    assert snapshot(pristine) == before


class Failing:
    """A function that fails when it is called for the n-th time."""

    def __init__(self, function: Callable[..., Any], number: int, error: BaseException) -> None:
        self.function, self.left, self.error = function, number, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("mode", ["apply", "update", "revert"])
@pytest.mark.parametrize(
    ("module", "name"),
    [(os, "replace"), (os, "rename"), (shutil, "copy2"), (shutil, "copystat"), (Path, "write_bytes")],
)
def test_failure_in_the_middle_leaves_everything_as_it_was(
    mode: str, module: Any, name: str, pristine: Path, graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode != "apply":
        graft(pristine, "apply")
    if mode == "update":
        write_tree({BUILDER: llava_like()[BUILDER], TRAIN: llava_like()[TRAIN]}, pristine)
        replace(pristine / ARCH, "        write_llava", "      # old\n        write_llava")
        manifest = json.loads((pristine / FOLDER / "manifest.json").read_text())
        (pristine / FOLDER / "manifest.json").write_text(json.dumps(manifest | {"blocks": None}))
    (pristine / BUILDER).chmod(0o640)
    if os.geteuid() == 0:
        os.chown(pristine / BUILDER, 1234, 1234)
    before, failures = snapshot(pristine.parent), 0
    function = getattr(module, name)
    for number in (1, 2, 3, 9, 30):
        failing = Failing(function, number, OSError(errno.ENOSPC, "No space left on device"))
        with monkeypatch.context() as patched:
            patched.setattr(module, name, lambda *args, failing=failing, **kwargs: failing(*args, **kwargs))
            status, printed = graft(pristine, "revert" if mode == "revert" else "apply")
        if failing.left > 0:  # not so many calls: it has worked
            assert status == 0
            break
        failures += 1
        assert status == 1 and "nothing was changed: " in printed and "No space left" in printed
        assert snapshot(pristine.parent) == before
    assert failures


def test_interrupted_run_leaves_everything_as_it_was(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(pristine)
    failing = Failing(os.rename, 1, KeyboardInterrupt())
    monkeypatch.setattr(os, "rename", lambda *args: failing(*args))
    with pytest.raises(KeyboardInterrupt):
        main([str(pristine), "--apply"])
    assert snapshot(pristine) == before


def test_leftovers_of_a_killed_run_do_no_harm(grafted: Path, graft: Graft) -> None:
    shutil.copytree(grafted / "model", grafted / "model/.llava_connectors-left")
    write_tree({BUILDER: llava_like()[BUILDER]}, grafted)  # it was killed before the first file was replaced
    assert graft(grafted, "apply")[0] == 0
    assert "up to date" in graft(grafted, "apply")[1]


def test_dirty_git_tree_keeps_its_changes(pristine: Path, graft: Graft) -> None:
    def git(*args: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *args]
        return subprocess.run(command, cwd=pristine.parent, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    replace(pristine / ARCH, "class MetaModel:", "SCALE = 2\n\n\nclass MetaModel:")
    (pristine / "data.py").write_text("rows = 1\n")
    (pristine / "notes.txt").write_text("mine\n")
    before, changed, diff = snapshot(pristine), git("status", "--porcelain"), git("diff")
    assert graft(pristine, "apply")[0] == 0
    assert git("diff", "llava/data.py") in diff
    assert graft(pristine, "revert")[0] == 0
    assert (snapshot(pristine), git("status", "--porcelain"), git("diff")) == (before, changed, diff)
