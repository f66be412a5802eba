"""Code bases that the graft does not fit: it says where and why, what to do by hand, and writes nothing."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.llava_like import (
    ARCH,
    BUILDER,
    CLIP,
    LLAMA,
    TRAIN,
    Tree,
    edit,
    llava_like,
    snapshot,
    write_tree,
)
from tests.unit.patches.conftest import Graft
from tests.unit.patches.test_applied import ENCODE, METHODS, PREPARE, subclass

pytest.importorskip("libcst")


def edits(*changes: tuple[str, str, str]) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        for name, old, new in changes:
            edit(tree, name, old, new)

    return change


def encodes(body: str) -> Callable[[Tree], None]:
    """`encode_images` with another body."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return edits((ARCH, ENCODE, f"    def encode_images(self, images):\n{lines}\n"))


def appends(name: str, text: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        tree[name] = tree.get(name, b"") + text.encode()

    return change


def config_after_build(tree: Tree) -> None:
    line = "        self.config.mm_hidden_size = self.vision_tower.hidden_size\n"
    build = "            self.mm_projector = build_vision_projector(self.config)\n"
    edits((ARCH, line, ""), (ARCH, build, build + line))(tree)


def factory_elsewhere(tree: Tree) -> None:
    tree["model/projectors.py"] = tree[BUILDER]
    edit(tree, ARCH, ".multimodal_projector.builder", ".projectors")


def factory_in_package(tree: Tree) -> None:
    tree["model/multimodal_projector/more.py"] = tree[BUILDER]
    tree["model/multimodal_projector/__init__.py"] = b"from .more import build as build_vision_projector\n"
    edit(tree, ARCH, ".multimodal_projector.builder", ".multimodal_projector")


def merged_classes(tree: Tree) -> None:
    """One class is the language model and prepares its inputs."""
    edit(
        tree, LLAMA, "class CausalLM(MetaForCausalLM):\n", "class CausalLM:\n" + METHODS.replace("@abstractmethod", "")
    )
    edit(tree, ARCH, METHODS, "    pass\n")


INNER = "    def encode_images(self, images):\n        return self.mm_projector(self.vision_tower(images))\n\n"
TOWER = "features = self.get_model().get_vision_tower()(images)\n"
PROJECTOR = "return self.get_model().mm_projector(features)"

REFUSED: dict[str, tuple[Callable[[Tree], None], str, str]] = {  # change, reason, remedy
    "no factory": (
        edits((BUILDER, "def build_vision_projector", "def build_projector")),
        "builder.py: there is no build_vision_projector",
        "keep one function build_vision_projector(config, ...)",
    ),
    "two factories": (
        appends(BUILDER, "\n\ndef build_vision_projector(config):\n    return None\n"),
        "builder.py: build_vision_projector is defined 2 times (lines 16, 24)",
        "keep one function",
    ),
    "factory from elsewhere": (factory_elsewhere, "build_vision_projector comes from .projectors", "move it to"),
    "factory from beside": (factory_in_package, "build_vision_projector comes from .more", "move it to"),
    "factory by star": (
        lambda tree: tree.update(
            {"model/multimodal_projector/more.py": tree[BUILDER], BUILDER: b"from .more import *\n"}
        ),
        "builder.py: there is no build_vision_projector",
        "keep one function build_vision_projector(config, ...)",
    ),
    "factory called by star": (
        edits((ARCH, "builder import build_vision_projector", "builder import *")),
        "llava_arch.py: build_vision_projector is called here, but not imported by its name",
        "import build_vision_projector from model/multimodal_projector/builder.py",
    ),
    "flags by star": (
        lambda tree: tree.update({TRAIN: b"from llava.flags import *\n"}),
        "train/train.py: there is no class ModelArguments",
        "after the class of the model's flags, insert:",
    ),
    "factory in the arch": (
        appends(ARCH, "\n\ndef build_vision_projector(config):\n    return None\n"),
        "llava_arch.py:53: build_vision_projector is defined here",
        "move it to model/multimodal_projector/builder.py",
    ),
    "factory without configuration": (
        edits((BUILDER, "(config, delay_load=False, **kwargs)", "(*, config)")),
        "builder.py:16: build_vision_projector takes no configuration",
        "give it the model's config",
    ),
    "factory on one line": (
        edits((BUILDER, "def build_vision", "def build_vision_projector(config): return config\n\ndef other")),
        "the body of build_vision_projector is on one line",
        "write its body on lines of its own",
    ),
    "no prepare": (
        edits((ARCH, "def prepare_inputs", "def make_inputs")),
        "no class has a method prepare_inputs_labels_for_multimodal",
        "write prepare_inputs_labels_for_multimodal as LLaVA-1.5 has it",
    ),
    "encode on one line": (
        edits((ARCH, ENCODE, "    def encode_images(self, images): return self.get_model().mm_projector(images)\n\n")),
        "the body of encode_images is on one line",
        "write its body on lines of its own",
    ),
    "encode is static": (
        edits(
            (ARCH, ENCODE, ENCODE.replace("self, images", "images").replace("    def", "    @staticmethod\n    def"))
        ),
        "encode_images does not take self first",
        "write encode_images as an ordinary method",
    ),
    "encode without images": (
        edits((ARCH, ENCODE, ENCODE.replace("self, images", "self, *images"))),
        "encode_images takes no images",
        "write encode_images(self, images)",
    ),
    "encode of the inner model": (
        encodes("return self.mm_projector(self.vision_tower(images))"),
        "calls self.mm_projector, so this is not the causal language model",
        "insert at its top:\n        from .llava_connectors import encode_images",
    ),
    "encode in the inner model only": (
        edits((ARCH, ENCODE, ""), (ARCH, "    def initialize_vision", INNER + "    def initialize_vision")),
        "llava_arch.py:16: encode_images is more than vision tower and projector: it calls self.mm_projector",
        "insert at its top:",
    ),
    "only a tower encodes": (
        edits(
            (ARCH, ENCODE, ""),
            (CLIP, "    def __call__", "    def encode_images(self, images):\n        return 1\n\n    def __call__"),
        ),
        "no class has a method encode_images",
        "write encode_images as LLaVA-1.5 has it",
    ),
    "encode and more": (
        encodes(TOWER + "features = self.pool(features)\n" + PROJECTOR),
        "it calls self.pool",
        "insert at",
    ),
    "encode and scale": (
        encodes(TOWER + "features *= self.scale\n" + PROJECTOR),
        "computes (features *= self.scale)",
        "insert",
    ),
    "encode and cut": (encodes(TOWER + PROJECTOR + "[:, 1:]"), "it computes", "insert at its top"),
    "encode and keep": (
        encodes(TOWER + "self.last = features\n" + PROJECTOR),
        "it sets self.last",
        "insert at its top",
    ),
    "encode in a loop": (encodes("return [self.get_model().mm_projector(i) for i in images]"), "it loops", "insert"),
    "encode with text": (
        encodes(TOWER + PROJECTOR[:-1] + ", self.text)"),
        "more than images or their features",
        "insert",
    ),
    "encode to two": (encodes(TOWER + PROJECTOR + ", features"), "it returns several values", "insert at its top"),
    "encode without projector": (
        encodes("return self.get_vision_tower()(images)"),
        "does not call mm_projector",
        "insert",
    ),
    "subclass encodes more": (
        subclass("        return self.resample(self.model.mm_projector(images))\n"),
        "llama.py:16: encode_images is more than vision tower and projector: it calls self.resample",
        "insert at its top:\n        from ..llava_connectors import",
    ),
    "configuration after the build": (
        config_after_build,
        "initialize_vision_modules does not first write config.mm_projector_type",
        "in front of the line that builds mm_projector, insert:\n        from .llava_connectors import write_settings",
    ),
    "all on one line": (
        edits(
            (ARCH, "        self.config.mm_projector_type = model_args.mm_projector_type\n", ""),
            (
                ARCH,
                "            self.mm_projector = build",
                "            self.config.mm_projector_type = 'x'; self.mm_projector = build",
            ),
        ),
        "initialize_vision_modules does not first write",
        "in front of the line that builds",
    ),
    "no initialize": (
        edits((ARCH, "def initialize_vision_modules", "def set_up")),
        "no class has a method initialize_vision_modules",
        "write initialize_vision_modules as LLaVA-1.5 has it",
    ),
    "prepares other inputs": (
        edits((ARCH, "labels, images, image_sizes=None", "labels, pixels, images")),
        "past_key_values, labels, pixels, images), which returns 6 values, has other parameters or results",
        "assembled = assemble_llava_connector_inputs(",
    ),
    "prepares weights too": (
        lambda tree: tree.update({ARCH: tree[ARCH].replace(b"labels\n\n        def", b"labels, 0\n\n        def")}),
        "which returns 6 or 7 values",
        "assembled = assemble_llava_connector_inputs(",
    ),
    "prepares a pack": (
        edits((ARCH, PREPARE, PREPARE[: PREPARE.index("        if images")] + "        return self.pack(images)\n")),
        "which returns other values",
        "assembled = assemble_llava_connector_inputs(",
    ),
    "own init_subclass": (
        edits((ARCH, "    @abstractmethod", "    def __init_subclass__(cls):\n        pass\n\n    @abstractmethod")),
        "llava_arch.py:26: MetaForCausalLM has a __init_subclass__ of its own",
        "add to it:\n        from .llava_connectors import carry_weights\n        carry_weights(cls)",
    ),
    "one class for all": (
        merged_classes,
        "CausalLM has both prepare_inputs_labels_for_multimodal and forward",
        "insert:\n        from ..llava_connectors import carry_weights\n        carry_weights(CausalLM)",
    ),
    "flags elsewhere": (
        edits((TRAIN, "class ModelArguments:", "class Arguments:")),
        "train/train.py: there is no class ModelArguments",
        "of the model's flags, insert:\n        from llava.model.llava_connectors import with_connector_flags",
    ),
    "flags in if": (
        edits((TRAIN, "@dataclass\nclass ModelArguments:\n", "if True:\n  @dataclass\n  class ModelArguments:\n")),
        "class ModelArguments is not defined once, at the top level",
        "insert:\n        from llava.model.llava_connectors",
    ),
    "flags at the end": (
        lambda tree: tree.update({TRAIN: b"import llava\n@dataclass\nclass ModelArguments:\n    a: int = 1"}),
        "train/train.py:4: the file does not end with a new line",
        "add one",
    ),
    "no dataclass": (
        lambda tree: tree.update({TRAIN: b"class ModelArguments:\n    a: int = 1\n"}),
        "train/train.py:1: ModelArguments is no dataclass",
        "ModelArguments = with_connector_flags(ModelArguments)",
    ),
    "does not parse": (appends(ARCH, "def f(:\n"), "llava_arch.py:51: this file does not parse", "mend the file"),
    "training does not parse": (appends(TRAIN, "\n  x = (\n"), "train/train.py:", "mend the file"),
    "unknown encoding": (
        lambda tree: tree.update({BUILDER: b"# coding: nonsense\n" + tree[BUILDER]}),
        "builder.py: this file does not parse",
        "mend the file",
    ),
    "own folder": (
        appends("model/llava_connectors/__init__.py", "mine = 1\n"),
        "llava/model/llava_connectors: this name is taken already",
        "rename it",
    ),
    "own module": (
        appends("model/llava_connectors.py", "mine = 1\n"),
        "llava/model/llava_connectors.py: there is such a module already",
        "rename it",
    ),
    "own file": (
        appends("model/llava_connectors", "mine\n"),
        "model/llava_connectors: this name is taken",
        "rename it",
    ),
    "half a block": (
        appends(BUILDER, "# <<< llava-connectors\n"),
        "builder.py:22: a bracket of an inserted block has no partner",
        "remove the rest of this block",
    ),
    "grafted project": (
        appends("model/multimodal_projector/visual_anchors.py", ""),
        "has these connectors already",
        "as it is",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named_and_nothing_is_written(name: str, tmp_path: Path, graft: Graft) -> None:
    change, reason, remedy = REFUSED[name]
    tree = llava_like()
    change(tree)
    write_tree(tree, tmp_path / "llava")
    before = snapshot(tmp_path)
    for mode in ("check", "apply"):
        status, printed = graft(tmp_path, mode)
        assert status == 1 and printed.startswith("error: nothing was written"), printed
        assert reason in printed and "by hand: " in printed, printed
        assert remedy in printed[printed.index(reason) :], printed
        assert printed.count("by hand: ") == 1, printed
        assert snapshot(tmp_path) == before


HAND_MADE: dict[str, tuple[str, str]] = {  # refused code base: where its owner puts the lines, in front of what
    "encode and more": (ARCH, "        features = self.get_model()"),
    "configuration after the build": (ARCH, "        # Stage 2 has"),
    "own init_subclass": (ARCH, "        pass\n\n    @abstractmethod"),
    "one class for all": (LLAMA, ""),
    "flags elsewhere": (TRAIN, "@dataclass\nclass DataArguments"),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_place_done_by_hand_as_the_message_says_is_left_alone(name: str, tmp_path: Path, graft: Graft) -> None:
    tree = llava_like()
    REFUSED[name][0](tree)
    root = write_tree(tree, tmp_path / "llava")
    printed = graft(tmp_path)[1]
    code = [line[8:] for line in printed.splitlines() if line.startswith(" " * 8)]
    place, anchor = HAND_MADE[name]
    indent = anchor[: len(anchor) - len(anchor.lstrip())]
    inserted = "".join(f"{indent}{line}\n" for line in code)
    if anchor:
        edit(tree, place, anchor, inserted + anchor)
    else:
        tree[place] += inserted.encode()
    write_tree(tree, root)
    before = snapshot(tmp_path)
    status, printed = graft(tmp_path, "apply")
    assert status == 0, printed
    status, printed = graft(tmp_path, "revert")
    assert (status, snapshot(tmp_path)) == (0, before)
    assert f"note: llava/{place} still imports the connectors, by hand" in printed


def test_only_one_package_is_grafted(tmp_path: Path, graft: Graft) -> None:
    for name in ("llava", "third_party/llava", "build/lib/llava", ".venv/llava"):
        write_tree(llava_like(), tmp_path / name)
    before = snapshot(tmp_path)
    status, printed = graft(tmp_path, "apply")
    assert status == 1 and "several LLaVA packages: llava, third_party/llava\n" in printed
    assert "by hand: give the folder of one of them" in printed
    assert snapshot(tmp_path) == before
    assert graft(tmp_path / "llava", "apply")[0] == 0
    changed = {name for name, entry in snapshot(tmp_path).items() if before.get(name) != entry}
    assert changed and all(name.startswith("llava/") for name in changed)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "there is no such folder"),
        ("llava/model/llava_arch.py", "there is no such folder"),
        ("llava/model", "no LLaVA package"),
        (str(REPOSITORY), "this package has these connectors already"),
    ],
)
def test_wrong_path(path: str, reason: str, tmp_path: Path, graft: Graft) -> None:
    write_tree(llava_like(), tmp_path / "llava")
    before = snapshot(tmp_path)
    for mode in ("check", "apply", "revert", "status"):
        status, printed = graft(tmp_path / path, mode)
        assert status == 1 and reason in printed and "by hand: " in printed
    assert snapshot(tmp_path) == before


def test_files_of_others_are_not_changed_through_links(tmp_path: Path, graft: Graft) -> None:
    root = write_tree(llava_like(), tmp_path / "checkout/llava")
    shared = tmp_path / "cache/builder.py"
    shared.parent.mkdir()
    (root / BUILDER).rename(shared)
    (root / BUILDER).symlink_to(shared)
    before = snapshot(tmp_path)
    status, printed = graft(root, "apply")
    assert status == 1 and f"builder.py: this is a link to {shared}, outside of the package" in printed
    assert "put a copy of the file in place of the link" in printed
    assert snapshot(tmp_path) == before


def test_without_libcst(tmp_path: Path, graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libcst", None)
    assert graft(tmp_path) == (1, "error: this needs libcst: pip install -e '.[patches]'\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written(tmp_path: Path, graft: Graft) -> None:
    root = write_tree(llava_like(), tmp_path / "llava")
    (root / "train").chmod(0o555)
    before = snapshot(tmp_path)
    try:
        status, printed = graft(root, "apply")
        assert status == 1 and "nothing was changed: " in printed and "train" in printed
        assert snapshot(tmp_path) == before
    finally:
        (root / "train").chmod(0o755)
