"""Find a LLaVA package and its files below a folder."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from patches.errors import GraftError, Obstacle
from patches.syntax import SourceFile

BUILDER = "model/multimodal_projector/builder.py"
FOLDER = "model/llava_connectors"
SKIPPED = {"build", "dist", "node_modules", "site-packages", "venv"}  # unless the path given leads into them
OWN = "model/multimodal_projector/visual_anchors.py"  # of the package that the connectors come from
SEARCH_DEPTH = 3


@dataclass(frozen=True)
class CodeBase:
    """A LLaVA package.

    Attributes:
        root: the folder that holds `model/` and, with training code, `train/`.
    """

    root: Path

    @property
    def package(self) -> str:
        """The dotted name it is imported by."""
        parts, folder = [self.root.name], self.root.parent
        while (self.root / "__init__.py").exists() and (folder / "__init__.py").exists():
            parts.insert(0, folder.name)
            folder = folder.parent
        return ".".join(parts)

    @property
    def folder(self) -> Path:
        """Where the connectors go."""
        return self.root / FOLDER

    @property
    def train(self) -> Path:
        return self.root / "train/train.py"

    @cached_property
    def model_files(self) -> list[Path]:
        """The Python files of the model, without the connectors and without hidden files and folders, which are no
        part of a package: copies that a notebook keeps, locks of an editor.
        """
        model = self.root / "model"
        files = [path for path in sorted(model.rglob("*.py")) if path.is_file() and self.folder not in path.parents]
        return [path for path in files if not any(part.startswith(".") for part in path.relative_to(model).parts)]

    def name(self, path: Path) -> str:
        """A file as shown in messages: relative, with the package's folder in front."""
        return str(Path(self.root.name) / path.relative_to(self.root))

    def connectors_from(self, path: Path) -> str:
        """The relative import of the connectors in a file of the model."""
        depth = len(path.relative_to(self.root / "model").parts)
        return "." * depth + self.folder.name

    def parse(self, path: Path, source: bytes) -> SourceFile:
        return SourceFile(path, self.name(path), source)


def find_code_base(path: Path) -> CodeBase:
    """The LLaVA package in a checkout, or the package's own folder.

    Raises:
        GraftError: there is none, there are several, or it is the package that the connectors come from.
    """
    path = path.resolve()
    if not path.is_dir():
        raise GraftError([Obstacle(str(path), "there is no such folder", "give the folder of a LLaVA checkout")])
    found = [path] if (path / BUILDER).is_file() else list(_below(path, SEARCH_DEPTH))
    if not found:
        raise GraftError(
            [
                Obstacle(
                    str(path),
                    f"no LLaVA package: no folder with {BUILDER} up to {SEARCH_DEPTH} levels down",
                    "give the folder of a LLaVA checkout, or of an installed package",
                )
            ]
        )
    if len(found) > 1:
        names = ", ".join(str(root.relative_to(path)) for root in found)
        raise GraftError([Obstacle(str(path), f"several LLaVA packages: {names}", "give the folder of one of them")])
    if (found[0] / OWN).is_file():
        raise GraftError([Obstacle(str(found[0]), "this package has these connectors already", "use it as it is")])
    return CodeBase(found[0])


def _below(folder: Path, depth: int) -> list[Path]:
    """Packages below a folder, not below one another."""
    roots: list[Path] = []
    for child in sorted(folder.iterdir()):
        if not child.is_dir() or child.is_symlink() or child.name.startswith(".") or child.name in SKIPPED:
            continue
        if not os.access(child, os.R_OK | os.X_OK):  # somebody else's data
            continue
        if (child / BUILDER).is_file():
            roots.append(child)
        elif depth > 1:
            roots += _below(child, depth - 1)
    return roots
