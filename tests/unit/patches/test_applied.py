"""Code bases that the graft fits: it works, a second time changes nothing, and it is gone without a trace."""

import ast
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.llava_like import (
    ARCH,
    BUILDER,
    CLIP,
    FILES,
    LLAMA,
    STUB,
    TRAIN,
    Tree,
    edit,
    end_lines,
    llava_like,
    reformat,
    rename_package,
    snapshot,
    tabs,
    use,
    write_tree,
)
from tests.unit.patches.conftest import Graft

pytest.importorskip("libcst")

METHODS = FILES[ARCH][FILES[ARCH].index("    @abstractmethod") :]
ENCODE = METHODS[METHODS.index("    def encode_images") : METHODS.index("    def prepare")]
PREPARE = METHODS[METHODS.index("    def prepare") :]


def no_training(tree: Tree) -> None:
    del tree[TRAIN], tree["train/__init__.py"]


def no_empty_init(tree: Tree) -> None:
    """Namespace packages, as older checkouts have them."""
    for name in [name for name, content in tree.items() if name.endswith("__init__.py") and not content]:
        del tree[name]


def other_order(tree: Tree) -> None:
    edit(tree, ARCH, ENCODE, "")
    edit(tree, ARCH, PREPARE, PREPARE + "\n" + ENCODE)
    start = FILES[BUILDER].index("def build")
    tree[BUILDER] = (FILES[BUILDER][start:] + "\n\n" + FILES[BUILDER][:start]).encode()


def spread_out(tree: Tree) -> None:
    """As a formatter with short lines writes it, with comments in between."""
    chain = "self.get_model(\n        ).mm_projector(  # of stage 1\n            features\n        )"
    edit(tree, ARCH, "self.get_model().mm_projector(features)", chain)
    edit(
        tree,
        ARCH,
        "self.get_model().get_vision_tower()(images)",
        "self.get_model().get_vision_tower(\n        )(images)",
    )


def plain_casts(tree: Tree) -> None:
    body = """        import contextlib

        tower = self.get_vision_tower()
        print(images)
        if images is not None:
            features = tower(images)
        return self.get_model().mm_projector(features)
"""
    edit(tree, ARCH, ENCODE, "    def encode_images(self, images):\n" + body + "\n")


def no_last_newline(tree: Tree) -> None:
    for name in (ARCH, BUILDER, LLAMA, TRAIN):
        tree[name] = tree[name].rstrip(b"\n")


def byte_order_mark(tree: Tree) -> None:
    for name in (ARCH, BUILDER, TRAIN):
        tree[name] = b"\xef\xbb\xbf" + tree[name]


def latin_1(tree: Tree) -> None:
    for name in (ARCH, BUILDER, TRAIN):
        tree[name] = b"# -*- coding: latin-1 -*-\n# \xe9\n" + tree[name]


def form_feeds(tree: Tree) -> None:
    """A page break, and separators that are line ends for `str.splitlines` only."""
    for name in (ARCH, BUILDER, TRAIN):
        tree[name] = b'"""Page \x0b\x1c\xe2\x80\xa8 one."""\n\x0c\n' + tree[name]


def decorated(tree: Tree) -> None:
    edit(tree, ARCH, "from abc import", "import functools\nfrom abc import")
    keep = "def keep(function):\n    return functools.wraps(function)(lambda *a, **k: function(*a, **k))\n\n\n"
    edit(tree, ARCH, "class MetaModel:", keep + "class MetaModel:")
    edit(tree, ARCH, "    def encode_images", "    @keep\n    def encode_images")
    edit(tree, ARCH, "    def initialize", "    @keep\n    def initialize")
    edit(tree, BUILDER, "def build_vision", "@staticmethod\ndef build_vision")


def namesakes(tree: Tree) -> None:
    """Functions of the same names that are no methods, or are inside functions."""
    more = """

def encode_images(paths):
    async def encode_images(path):
        return path

    def build_vision_projector():
        return encode_images

    return build_vision_projector()
"""
    tree[ARCH] += more.encode()


def nested_in_if(tree: Tree) -> None:
    text = FILES[BUILDER]
    start = text.index("def build")
    inner = "".join(f"    {line}" if line.strip() else line for line in text[start:].splitlines(keepends=True))
    tree[BUILDER] = (text[:start] + "if True:\n" + inner).encode()


def subclass(body: str) -> Callable[[Tree], None]:
    """A subclass of the language model with another encode_images."""

    def change(tree: Tree) -> None:
        edit(tree, LLAMA, "class CausalLM(", "class Base(")
        text = f"\n\nclass CausalLM(Base):\n    def encode_images(self, images):\n{body}"
        tree[LLAMA] += text.encode()

    return change


def subclass_of_a_subclass(tree: Tree) -> None:
    """The class in between is in a file that says nothing of images."""
    subclass("        return self.model.mm_projector(self.get_vision_tower()(images))\n")(tree)
    edit(tree, LLAMA, "class CausalLM(Base):", "class CausalLM(Between):")
    edit(tree, LLAMA, "\n\nclass CausalLM", "\n\nfrom .between import Between\n\n\nclass CausalLM")
    tree["model/language_model/between.py"] = b"from .llama import Base\n\n\nclass Between(Base):\n    pass\n"


def subclass_prepares(tree: Tree) -> None:
    """The method is written anew in the language model, which has `forward` as well."""
    edit(tree, LLAMA, "    def forward", PREPARE + "\n    def forward")


def older_signature(tree: Tree) -> None:
    """As before LLaVA 1.1.3."""
    tree[ARCH] = tree[ARCH].replace(b" position_ids,", b"")


def written_in_if(tree: Tree) -> None:
    config = "        self.config.mm_hidden_size = self.vision_tower.hidden_size\n"
    edit(tree, ARCH, config, "")
    edit(tree, ARCH, "            self.mm_projector = build", "    " + config + "            self.mm_projector = build")


def other_arguments(tree: Tree) -> None:
    edit(tree, BUILDER, "config, delay_load=False, **kwargs", "cfg, /, *, vision_cfg=None")
    edit(tree, BUILDER, "getattr(config", "getattr(cfg")
    edit(tree, ARCH, "self, model_args, fsdp=None", "self, args, fsdp=None, embed_tokens=None")
    edit(tree, ARCH, "model_args.mm", "args.mm")
    edit(tree, ARCH, "images, image_sizes=None", "images, modalities=('image',), image_sizes=None")


def own_names(tree: Tree) -> None:
    """Functions of this code base that have names of the connectors'."""
    edit(tree, BUILDER, "return Projector(kind)", "return build_connector(kind)")
    tree[BUILDER] += b"\n\ndef build_connector(kind):\n    connector = Projector(kind)\n    return connector\n"


def hidden_copies(tree: Tree) -> None:
    """What notebooks and editors leave."""
    tree["model/.ipynb_checkpoints/llava_arch-checkpoint.py"] = b"def encode_images(:\n"


def tower_that_encodes(tree: Tree) -> None:
    """A class that has nothing to do with language models has a method of that name."""
    tree[CLIP] += b"\n    def encode_images(self, images):\n        return 1\n"


def split_parents(tree: Tree) -> None:
    """Encoding and preparing are in classes of their own; an older file is left."""
    tree["model/old_arch.py"] = tree[ARCH]
    edit(tree, ARCH, PREPARE, "")
    edit(tree, ARCH, "class MetaForCausalLM(ABC)", "class Encoding(ABC)")
    tree[ARCH] += f"class MetaForCausalLM(Encoding):\n{PREPARE}".encode()


def imports_of_others(tree: Tree) -> None:
    """An absolute name that has the package's name inside."""
    tree[TRAIN] = (
        b"try:\n    from transformers.models.llava.model import X\nexcept ImportError:\n    pass\n" + tree[TRAIN]
    )


APPLIED: dict[str, Callable[[Tree], None]] = {
    "as LLaVA": lambda tree: None,
    "no training code": no_training,
    "namespace packages": no_empty_init,
    "other order": other_order,
    "written anew": reformat,
    "spread out": spread_out,
    "plain casts": plain_casts,
    "tabs": tabs,
    "crlf": lambda tree: end_lines(tree, b"\r\n"),
    "mixed line ends": lambda tree: end_lines(tree, b"\n", b"\r\n", b"\n"),
    "carriage returns": lambda tree: end_lines(tree, b"\r"),
    "no last newline": no_last_newline,
    "byte order mark": byte_order_mark,
    "latin-1": latin_1,
    "form feeds": form_feeds,
    "decorated": decorated,
    "namesakes": namesakes,
    "factory in if": nested_in_if,
    "subclass calls super": subclass("        return super().encode_images(images)\n"),
    "subclass calls parent": subclass("        return Base.encode_images(self, images)\n"),
    "subclass anew": subclass("        return self.model.mm_projector(self.get_vision_tower()(images))\n"),
    "subclass of a subclass": subclass_of_a_subclass,
    "subclass prepares": subclass_prepares,
    "older signature": older_signature,
    "written in if": written_in_if,
    "other arguments": other_arguments,
    "own names": own_names,
    "hidden copies": hidden_copies,
    "imports of others": imports_of_others,
    "tower that encodes": tower_that_encodes,
    "split parents": split_parents,
}


@pytest.mark.parametrize("name", APPLIED)
def test_graft_works_and_leaves_no_trace(name: str, tmp_path: Path, graft: Graft) -> None:
    tree = llava_like()
    APPLIED[name](tree)
    root = write_tree(tree, tmp_path / "checkout/llava")
    before, plain = snapshot(tmp_path), use(root.parent, "linear")[0]

    status, diff = graft(root.parent)
    assert status == 0, diff
    assert "+++ b/llava/model/llava_arch.py" in diff and "new folder llava/model/llava_connectors" in diff
    assert snapshot(tmp_path) == before

    assert graft(root.parent, "apply")[0] == 0
    after = snapshot(tmp_path)
    for path in root.rglob("*.py"):
        if not any(part.startswith(".") for part in path.parts):
            ast.parse(path.read_bytes())
    for path, source in tree.items():
        assert line_style((root / path).read_bytes()) <= line_style(source) | {b""}
    status, printed = graft(root.parent, "apply")
    assert (status, "up to date" in printed, snapshot(tmp_path)) == (0, True, after)

    check_use(shutil.copytree(tmp_path / "checkout", tmp_path / "used"), plain)
    shutil.rmtree(tmp_path / "used")
    assert graft(root.parent, "revert")[0] == 0
    assert snapshot(tmp_path) == before


def line_style(source: bytes) -> set[bytes]:
    """Line ends, and what lines begin with."""
    lines = source.splitlines(keepends=True)
    return {line[len(line.rstrip(b"\r\n")) :] for line in lines} | {line[:1] for line in lines if line[:1] in b" \t"}


def check_use(checkout: Path, plain: dict) -> None:
    """Every inserted block does its part, and none changes what the code base's own projectors do."""
    connectors = checkout / "llava/model/llava_connectors"
    shutil.rmtree(connectors)
    connectors.mkdir()
    (connectors / "__init__.py").write_text(STUB)
    linear, acformer, vlora = use(checkout, "linear", "acformer", "vlora")
    assert linear == plain | {"carries": True}
    assert (acformer["projector"], acformer["encoded"]) == ("connector with acformer 32 default", "tokens of images")
    unchanged = plain["prepared"][1:-2]
    prepared = ["tokens of images" if part == plain["encoded"] else part for part in plain["prepared"][-2]]
    assert acformer["prepared"] == [None, *unchanged, prepared, "labels"]
    assert vlora["prepared"] == [None, *unchanged, "embeds of ids mask", "labels images"]


@pytest.mark.parametrize(
    ("package", "place", "imported"),
    [
        ("geochat", "geochat", "geochat.model"),
        ("llava", "src/llava", "llava.model"),
        ("lab.llava", "lab/llava", "lab.llava.model"),
        ("llava", "lab/llava", "llava.model"),  # lab is a package, but train.py is started inside it
        ("llava", "src", "llava.model"),  # setup.py gives the folder another name
        ("model", "fork", "model"),  # the checkout itself is the package's folder
    ],
)
def test_package_is_found_and_imported_by_its_name(
    package: str, place: str, imported: str, tmp_path: Path, graft: Graft
) -> None:
    tree = llava_like()
    rename_package(tree, package)
    if package == "model":
        edit(tree, TRAIN, "from model.model", "from model")
    root = write_tree(tree, tmp_path / place)
    if place.startswith("lab/"):
        (tmp_path / "lab/__init__.py").touch()
    before = snapshot(tmp_path)
    assert graft(tmp_path, "apply")[0] == 0
    assert f"from {imported}.llava_connectors import".encode() in (root / TRAIN).read_bytes()
    assert graft(tmp_path, "revert")[0] == 0
    assert snapshot(tmp_path) == before


def test_files_keep_mode_links_and_folders_that_are_somebody_elses(tmp_path: Path, graft: Graft) -> None:
    root = write_tree(llava_like(), tmp_path / "checkout/llava")
    (root / ARCH).chmod(0o755)
    (root / BUILDER).chmod(0o440)
    if os.geteuid() == 0:
        os.chown(root / BUILDER, 1234, 1234)
    (root / "model/llava_arch.py").rename(root / "model/arch.py")
    (root / "model/llava_arch.py").symlink_to("arch.py")
    os.link(root / BUILDER, tmp_path / "cached.py")
    (root / "model/.#lock.py").symlink_to("nobody@nowhere")
    closed = tmp_path / "checkout/closed"
    closed.mkdir(mode=0o000)
    before = snapshot(tmp_path)
    try:
        status, printed = graft(tmp_path / "checkout", "apply")
        assert status == 0, printed
        after = snapshot(tmp_path)
        changed = {name for name, entry in after.items() if before.get(name, entry) != entry}
        assert changed == {f"checkout/llava/{name}" for name in ("model/arch.py", BUILDER, TRAIN)}
        assert {name: after[name][0] for name in before} == {name: entry[0] for name, entry in before.items()}
        assert graft(tmp_path / "checkout", "revert")[0] == 0
        assert snapshot(tmp_path) == before
    finally:
        closed.chmod(0o755)


@pytest.mark.parametrize(
    ("old", "new", "kept", "note"),
    [
        ('DEFAULT = "linear"', 'DEFAULT = "linear"\nTABLE = {"perceiver": 1}', '{"perceiver"}', "perceiver"),
        ('"mlp2x_gelu"', '"mlp2x_gelu", "vlora"', '{"vlora"}', "vlora"),
        ('"mlp2x_gelu"', '"mlp2x_gelu", "my_own"', "frozenset()", None),
    ],
)
def test_types_of_the_code_base_stay_its_own(
    old: str, new: str, kept: str, note: str | None, tmp_path: Path, graft: Graft
) -> None:
    tree = llava_like()
    edit(tree, BUILDER, old, new)
    root = write_tree(tree, tmp_path / "llava")
    status, printed = graft(tmp_path, "apply")
    assert status == 0
    assert kept in (root / "model/llava_connectors/host.py").read_text()
    assert (f"--mm_projector_type {note} still means" in printed) == (note is not None)


def test_methods_that_use_the_projector_by_themselves_are_named(tmp_path: Path, graft: Graft) -> None:
    tree = llava_like()
    videos = "    def encode_multimodals(self, videos):\n        return self.get_model().mm_projector(videos)\n\n"
    edit(tree, ARCH, "    def encode_images", videos + "    def encode_images")
    subclass(
        "        if len(images) == 1:\n            return super().encode_images(images)\n"
        "        return self.model.mm_projector(images)\n"
    )(tree)
    tree["model/video.py"] = b"def build_vision_projector(config):\n    return None\n"
    write_tree(tree, tmp_path / "llava")
    status, printed = graft(tmp_path)
    assert status == 0
    assert "encode_multimodals calls mm_projector by itself" in printed
    assert "llama.py:16: encode_images calls mm_projector by itself" in printed
    assert "llava/model/video.py:1: a second build_vision_projector" in printed
