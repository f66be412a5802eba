"""A small code base with the places that a LLaVA has, for tests of the graft: its images and features are strings."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

Tree = dict[str, bytes]  # files by path relative to the package's folder

ARCH, BUILDER, LLAMA = "model/llava_arch.py", "model/multimodal_projector/builder.py", "model/language_model/llama.py"
TRAIN, CLIP = "train/train.py", "model/multimodal_encoder/clip_encoder.py"

FILES = {
    "__init__.py": "",
    "model/__init__.py": "from .language_model.llama import CausalLM, MetaModel\n",
    "model/language_model/__init__.py": "",
    "model/multimodal_encoder/__init__.py": "",
    "model/multimodal_projector/__init__.py": "",
    "train/__init__.py": "",
    "data.py": "def read(path):\n    return open(path).read()\n",
    BUILDER: '''"""Projectors of this code base."""

DEFAULT = "linear"


class Projector:
    """Marks features with its kind."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, features):
        return f"{self.kind}({features})"


def build_vision_projector(config, delay_load=False, **kwargs):
    """Make the projector that the configuration names."""
    kind = getattr(config, "mm_projector_type", DEFAULT)
    if kind in (DEFAULT, "mlp2x_gelu"):
        return Projector(kind)
    raise ValueError(f"no such projector: {kind}")
''',
    CLIP: """class CLIPVisionTower:
    hidden_size = 32

    def __call__(self, images):
        return f"tower({images})"
""",
    ARCH: '''from abc import ABC, abstractmethod

from .multimodal_encoder.clip_encoder import CLIPVisionTower
from .multimodal_projector.builder import build_vision_projector


class MetaModel:
    def __init__(self, config):
        self.config = config
        self.mm_projector = None
        self.vision_tower = None

    def get_vision_tower(self):
        return self.vision_tower

    def initialize_vision_modules(self, model_args, fsdp=None):
        self.vision_tower = CLIPVisionTower()
        self.config.mm_projector_type = model_args.mm_projector_type
        self.config.mm_hidden_size = self.vision_tower.hidden_size

        # Stage 2 has one already.
        if self.mm_projector is None:
            self.mm_projector = build_vision_projector(self.config)


class MetaForCausalLM(ABC):
    """What all language models share."""

    @abstractmethod
    def get_model(self):
        ...

    def get_vision_tower(self):
        return self.get_model().get_vision_tower()

    def encode_images(self, images):
        features = self.get_model().get_vision_tower()(images)
        return self.get_model().mm_projector(features)

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
    ):
        """Put image features in front of the text."""
        if images is None:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels

        def with_features(text):
            return self.encode_images(images), text

        return None, position_ids, attention_mask, past_key_values, [*with_features(input_ids)], labels
''',
    LLAMA: """from ..llava_arch import MetaForCausalLM, MetaModel


class CausalLM(MetaForCausalLM):
    def __init__(self, config):
        self.model = MetaModel(config)

    def get_model(self):
        return self.model

    def forward(self, **inputs):
        return inputs
""",
    TRAIN: """import argparse
from dataclasses import dataclass, fields

from llava.model import CausalLM


@dataclass
class ModelArguments:
    mm_projector_type: str = "linear"


@dataclass
class DataArguments:
    data_path: str = ""


def train(argv):
    parser = argparse.ArgumentParser()
    for each in fields(ModelArguments):
        parser.add_argument(f"--{each.name}", default=each.default)
    return ModelArguments(**vars(parser.parse_args(argv))), CausalLM
""",
}

# Stands in for the folder of connectors: says what the inserted blocks call, and with what.
STUB = """
from collections import namedtuple
from dataclasses import make_dataclass

Assembled = namedtuple("Assembled", ["inputs_embeds", "labels"])
wants = lambda model, kind: model.get_model().config.mm_projector_type == kind

def build_connector(config):
    return f"connector with {config.setting}" if config.mm_projector_type in ("acformer", "vlora") else None

def encode_images(model, images):
    return f"tokens of {images}" if wants(model, "acformer") else None

def assemble_inputs(model, input_ids, attention_mask, labels, images):
    return Assembled(f"embeds of {input_ids} {attention_mask}", f"{labels} {images}") if wants(model, "vlora") else None

def write_settings(model, model_args):
    model.config.setting = f"{model.config.mm_projector_type} {model.config.mm_hidden_size} {model_args.mm_setting}"

def carry_weights(cls):
    cls.carries_weights = True

def with_connector_flags(arguments):
    return make_dataclass(arguments.__name__, [("mm_setting", str, "default")], bases=(arguments,))
"""

# Uses a package with one type of projector after the other, and prints what came out.
PROBE = """
import importlib, inspect, json, sys, types
model_folder = importlib.import_module("llava.model")
try:
    train = importlib.import_module("llava.train.train").train
except ModuleNotFoundError:
    train = None
values = dict(input_ids="ids", position_ids="positions", attention_mask="mask", past_key_values="past",
              labels="labels", images="images")
for kind in sys.argv[1:]:
    flags = train(["--mm_projector_type", kind])[0] if train else types.SimpleNamespace(
        mm_projector_type=kind, mm_setting="default"
    )
    model = model_folder.CausalLM(types.SimpleNamespace())
    model.get_model().initialize_vision_modules(flags)
    prepare, projector = model.prepare_inputs_labels_for_multimodal, model.get_model().mm_projector
    wanted = {name: value for name, value in values.items() if name in inspect.signature(prepare).parameters}
    print(json.dumps({
        "projector": projector if isinstance(projector, str) else projector.kind,
        "encoded": model.encode_images("images") if kind != "vlora" else None,
        "prepared": prepare(**wanted),
        "carries": getattr(type(model), "carries_weights", False),
    }))
"""


def llava_like() -> Tree:
    """The files of a package named llava."""
    return {name: text.encode() for name, text in FILES.items()}


def edit(tree: Tree, name: str, old: str, new: str) -> None:
    """Replace the one occurrence of a text in a file."""
    assert tree[name].count(old.encode()) == 1, (name, old)
    tree[name] = tree[name].replace(old.encode(), new.encode())


def rename_package(tree: Tree, name: str) -> None:
    """Give the package another name, in absolute imports."""
    for path, source in tree.items():
        for before, after in (("from llava.", f"from {name}."), ("from llava import", f"from {name} import")):
            source = source.replace(before.encode(), after.encode())
        tree[path] = source


def tabs(tree: Tree) -> None:
    """Indent with tabs in place of four spaces."""
    for path, source in tree.items():
        lines = source.splitlines(keepends=True)
        bare = [line.lstrip(b" ") for line in lines]
        indents = [len(line) - len(text) for line, text in zip(lines, bare)]
        tree[path] = b"".join(b"\t" * (n // 4) + b" " * (n % 4) + text for n, text in zip(indents, bare))


def end_lines(tree: Tree, *ends: bytes) -> None:
    """End lines with these in turn."""
    for path, source in tree.items():
        lines = source.splitlines()
        tree[path] = b"".join(line + ends[number % len(ends)] for number, line in enumerate(lines))


def reformat(tree: Tree) -> None:
    """Write every file anew from its syntax tree: no comments, no blank lines, other quotes."""
    for path, source in tree.items():
        tree[path] = ast.unparse(ast.parse(source)).encode() + b"\n"


def write_tree(tree: Tree, package: Path) -> Path:
    """Write a tree as a package folder."""
    for name, content in tree.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return package


Entry = tuple[tuple[int, int, int], bytes | str | None]


def snapshot(folder: Path) -> dict[str, Entry]:
    """Everything below a folder: mode and owner, and content or where a link leads; without compiled Python."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        status = path.lstat()
        owned = (status.st_mode, status.st_uid, status.st_gid)
        if path.is_symlink():
            found[str(path.relative_to(folder))] = (owned, os.readlink(path))
        else:
            found[str(path.relative_to(folder))] = (owned, path.read_bytes() if path.is_file() else None)
    return found


def use(folder: Path, *kinds: str) -> list[dict]:
    """Use the package `llava` below a folder with types of projectors, in a process without what is installed here."""
    command = [sys.executable, "-B", "-S", "-c", PROBE, *kinds]
    done = subprocess.run(command, cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
