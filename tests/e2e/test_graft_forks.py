"""The graft on code that is really old: LLaVA of February 2024 (PyPI: llava-torch), and forks made from it here.

No model runs; the forks are made by rewriting the files, as other groups have done.
"""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import old_llava
from tests.support.llava_like import (
    ARCH,
    BUILDER,
    TRAIN,
    Tree,
    end_lines,
    reformat,
    rename_package,
    snapshot,
    tabs,
    write_tree,
)
from tests.unit.patches.conftest import Graft, graft  # noqa: F401  a fixture

pytest.importorskip("libcst")
pytestmark = pytest.mark.e2e

LLAMA = "model/language_model/llava_llama.py"
BLOCKS = {ARCH: 4, BUILDER: 1, TRAIN: 1}


@pytest.fixture(scope="module")
def pristine() -> Path:
    """The unchanged package."""
    return old_llava.pristine() / "llava"


def read_tree(package: Path) -> Tree:
    """The Python files of a package."""
    return {str(path.relative_to(package)): path.read_bytes() for path in sorted(package.rglob("*.py"))}


def rewrite(name: str, transformer: Callable[[], ast.NodeTransformer]) -> Callable[[Tree], None]:
    """Write a file anew from its changed syntax tree."""

    def change(tree: Tree) -> None:
        module = ast.fix_missing_locations(transformer().visit(ast.parse(tree[name])))
        tree[name] = ast.unparse(module).encode() + b"\n"

    return change


def append(name: str, text: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        tree[name] = tree.get(name, b"") + text.encode()

    return change


def formatted(tree: Tree) -> None:
    """As a formatter with short lines leaves it."""
    for path, source in tree.items():
        command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "50", "-"]
        tree[path] = subprocess.run(command, input=source, check=True, capture_output=True).stdout


class Sorted(ast.NodeTransformer):
    """Methods in the order of their names, last one first."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        others = [part for part in node.body if part not in methods]
        node.body = others + sorted(methods, key=lambda method: method.name, reverse=True)
        return node


class Older(ast.NodeTransformer):
    """`prepare_inputs_labels_for_multimodal` without `position_ids`."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name == "prepare_inputs_labels_for_multimodal":
            node.args.args = [each for each in node.args.args if each.arg != "position_ids"]
            for part in ast.walk(node):
                if isinstance(part, ast.Return) and isinstance(part.value, ast.Tuple):
                    del part.value.elts[1]
        return node


class InBody(ast.NodeTransformer):
    """A statement of another group in front of the last one of a function."""

    def __init__(self, function: str, statement: str) -> None:
        self.function, self.statement = function, statement

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name == self.function:
            node.body[-1:-1] = ast.parse(self.statement).body
        return node


class InClass(InBody):
    """A method of another group at the end of a class."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if node.name == self.function:
            node.body += ast.parse(self.statement).body
        return node


class WithoutWrites(ast.NodeTransformer):
    """The configuration is written by somebody else."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        return None if ast.unparse(node.targets[0]) == "self.config.mm_projector_type" else node


def no_training(tree: Tree) -> None:
    for name in [name for name in tree if name.startswith("train/")]:
        del tree[name]


def no_last_newline(tree: Tree) -> None:
    for name in (ARCH, BUILDER, TRAIN):
        tree[name] = tree[name].rstrip()


def two_changes(*changes: Callable[[Tree], None]) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        for each in changes:
            each(tree)

    return change


MINE = "\n\nclass Mine(LlavaLlamaForCausalLM):\n    def encode_images(self, images):\n        return "
VIDEOS = "def encode_multimodals(self, videos):\n    return self.get_model().mm_projector(videos)\n"
SECOND = "\n\ndef build_vision_projector(config):\n    return None\n"

# The fork; how many blocks its files get where it is other than BLOCKS; what is noted.
APPLIED: dict[str, tuple[Callable[[Tree], None], dict[str, int], list[str]]] = {
    "as it is": (lambda tree: None, {}, []),
    "renamed": (lambda tree: None, {}, []),
    "renamed, from its syntax": (reformat, {}, []),
    "formatted": (formatted, {}, []),
    "tabs": (tabs, {}, []),
    "crlf": (lambda tree: end_lines(tree, b"\r\n"), {}, []),
    "mixed line ends": (lambda tree: end_lines(tree, b"\r\n", b"\n", b"\n"), {}, []),
    "no last newline": (no_last_newline, {}, []),
    "other order": (two_changes(rewrite(ARCH, Sorted), rewrite(LLAMA, Sorted)), {}, []),
    "no training": (no_training, {TRAIN: 0}, ["no train/train.py"]),
    "older signature": (rewrite(ARCH, Older), {}, []),
    "subclass calls super": (append(LLAMA, MINE + "super().encode_images(images)\n"), {}, []),
    "subclass anew": (append(LLAMA, MINE + "self.model.mm_projector(images)\n"), {LLAMA: 1}, []),
    "videos": (
        rewrite(ARCH, lambda: InClass("LlavaMetaForCausalLM", VIDEOS)),
        {},
        ["encode_multimodals calls mm_projector by itself"],
    ),
    "own vlora": (
        rewrite(BUILDER, lambda: InBody("build_vision_projector", "if projector_type == 'vlora':\n    return 1")),
        {},
        ["--mm_projector_type vlora still means this code base's own projector"],
    ),
    "second factory elsewhere": (append("model/video.py", SECOND), {}, ["a second build_vision_projector"]),
}

REFUSED: dict[str, tuple[Callable[[Tree], None], str]] = {
    "second factory": (append(BUILDER, SECOND), "build_vision_projector is defined 2 times"),
    "encodes and pools": (
        rewrite(ARCH, lambda: InBody("encode_images", "image_features = self.pool(image_features)")),
        "encode_images is more than vision tower and projector: it calls self.pool",
    ),
    "returns more": (
        rewrite(ARCH, lambda: InBody("prepare_inputs_labels_for_multimodal", "if images is 0:\n    return 1, 2, 3")),
        "which returns 3 or 6 values",
    ),
    "configuration from elsewhere": (
        rewrite(ARCH, WithoutWrites),
        "initialize_vision_modules does not first write config.mm_projector_type",
    ),
    "own init_subclass": (
        rewrite(ARCH, lambda: InClass("LlavaMetaForCausalLM", "def __init_subclass__(cls):\n    pass")),
        "has a __init_subclass__ of its own",
    ),
    "does not parse": (append(ARCH, "\nif True\n"), "this file does not parse as Python"),
}


@pytest.mark.parametrize("name", APPLIED)
def test_fork_is_grafted_and_comes_back(
    name: str,
    pristine: Path,
    tmp_path: Path,
    graft: Graft,  # noqa: F811
) -> None:
    change, counts, notes = APPLIED[name]
    package = "geochat" if "renamed" in name else "llava"
    tree = read_tree(pristine)
    rename_package(tree, package)
    change(tree)
    root = write_tree(tree, tmp_path / package)
    before = snapshot(tmp_path)
    status, printed = graft(tmp_path, "apply")
    assert status == 0, printed
    assert [note for note in notes if note not in printed] == []
    assert printed.count("note: ") == len(notes)
    status = graft(tmp_path, "status")[1]
    for path, count in (BLOCKS | counts).items():
        assert (f"{package}/{path}: {count} inserted block" in status) == (count > 0)
    if (root / TRAIN).exists():
        assert f"from {package}.model.llava_connectors import".encode() in (root / TRAIN).read_bytes()
    if name in ("as it is", "renamed, from its syntax", "mixed line ends"):  # takes a second each
        assert "up to date" in graft(tmp_path, "apply")[1]
    assert graft(tmp_path, "revert")[0] == 0
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", REFUSED)
def test_fork_is_refused_untouched(
    name: str,
    pristine: Path,
    tmp_path: Path,
    graft: Graft,  # noqa: F811
) -> None:
    change, reason = REFUSED[name]
    tree = read_tree(pristine)
    change(tree)
    write_tree(tree, tmp_path / "llava")
    before = snapshot(tmp_path)
    status, printed = graft(tmp_path, "apply")
    assert status == 1 and reason in printed, printed
    assert printed.count("by hand: ") == 1
    assert snapshot(tmp_path) == before


def test_formatted_after_grafting(
    pristine: Path,
    tmp_path: Path,
    graft: Graft,  # noqa: F811
) -> None:
    """The owner of a fork may format the blocks with everything else."""
    tree = read_tree(pristine)
    root = write_tree(tree, tmp_path / "llava")
    graft(root, "apply")
    grafted = {name: (root / name).read_bytes() for name in tree}
    formatted(grafted)
    write_tree(grafted, root)
    assert graft(root, "apply")[0] == 0
    assert graft(root, "revert")[0] == 0
    formatted(tree)
    after = {name: (root / name).read_bytes() for name in tree}
    formatted(after)
    assert after == tree
