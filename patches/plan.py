"""What is in a code base now, and what adding or removing the connectors would change."""

import ast
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from patches.blocks import insert_blocks, read_blocks, remove_blocks
from patches.code_base import CodeBase
from patches.errors import GraftError, Obstacle
from patches.examine import examine
from patches.files import read_folder
from patches.payload import MANIFEST, connector_names, digest, payload


@dataclass(frozen=True)
class State:
    """A code base as it is.

    Attributes:
        sources: the Python files of the model and `train.py`.
        bare: the same without the blocks of an earlier run.
        folder: the files of the connectors' folder; empty if there is none.
        manifest: what this folder was written with; None if there is none.
    """

    code_base: CodeBase
    sources: dict[Path, bytes]
    bare: dict[Path, bytes]
    folder: dict[str, bytes]
    manifest: dict | None

    @property
    def blocks(self) -> dict[Path, list[tuple[int, bytes]]]:
        """The blocks of each file that has any, see `read_blocks`."""
        blocks = {path: read_blocks(source) for path, source in self.sources.items()}
        return {path: found for path, found in blocks.items() if found}

    @property
    def edited_blocks(self) -> list[str]:
        """Where a block begins that is not as it was inserted."""
        known = (self.manifest or {}).get("blocks")
        return [
            f"{self.code_base.name(path)}:{line}"
            for path, blocks in self.blocks.items()
            for line, text in blocks
            if known is not None and digest(text) not in known
        ]

    @property
    def edited(self) -> list[str]:
        """Files of the folder that were changed or added since they were copied."""
        known = {} if self.manifest is None else self.manifest["files"]
        own = {name: content for name, content in self.folder.items() if name != MANIFEST}
        return [name for name, content in own.items() if known.get(name) != digest(content)]

    def check_own(self) -> None:
        """Refuse to replace a folder or blocks that hold somebody's work.

        Raises:
            GraftError: they are not from here, or were edited.
        """
        folder = self.code_base.folder
        where, module = self.code_base.name(folder), folder.with_suffix(".py")
        if module.exists():
            remedy = f"rename it: the folder {folder.name} would hide it"
            raise GraftError([Obstacle(self.code_base.name(module), "there is such a module already", remedy)])
        if (self.folder and self.manifest is None) or folder.is_symlink() or folder.is_file():
            raise GraftError([Obstacle(where, "this name is taken already, not by this program", "rename it")])
        obstacles = [
            Obstacle(
                f"{where}/{name}",
                "this file was changed or added since the folder was copied",
                "keep your change somewhere else, then remove the file",
            )
            for name in self.edited
        ]
        obstacles += [
            Obstacle(place, "this inserted block was edited", "move your lines out of it, or remove the whole block")
            for place in self.edited_blocks
        ]
        if obstacles:
            raise GraftError(obstacles)

    def check_links(self, files: dict[Path, bytes]) -> None:
        """Refuse to change files that other code bases use too.

        Raises:
            GraftError: a file is a link to a place outside of the package.
        """
        obstacles = [
            Obstacle(
                self.code_base.name(path),
                f"this is a link to {path.resolve()}, outside of the package",
                "put a copy of the file in place of the link",
            )
            for path in files
            if not path.resolve().is_relative_to(self.code_base.root)
        ]
        if obstacles:
            raise GraftError(obstacles)


@dataclass(frozen=True)
class Change:
    """Files with their new content, and the new content of the folder (None: no folder)."""

    state: State
    files: dict[Path, bytes]
    folder: dict[str, bytes] | None
    notes: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not self.files and (self.folder or {}) == self.state.folder


def read_state(code_base: CodeBase) -> State:
    """Read a code base.

    Raises:
        GraftError: a block has lost a bracket.
    """
    paths = [*code_base.model_files, *([code_base.train] if code_base.train.is_file() else [])]
    sources = {path: path.read_bytes() for path in paths}
    bare = {path: remove_blocks(source, code_base.name(path)) for path, source in sources.items()}
    folder = read_folder(code_base.folder)
    return State(code_base, sources, bare, folder, _manifest(folder))


def _manifest(folder: dict[str, bytes]) -> dict | None:
    try:
        manifest = json.loads(folder.get(MANIFEST, b"null"))
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def plan_graft(state: State) -> Change:
    """The change that adds the connectors, or brings an earlier graft up to date.

    Raises:
        GraftError: a touch point is missing or taken, or the folder holds somebody's work.
    """
    state.check_own()
    findings = examine(state.code_base, state.bare, connector_names())
    if findings.obstacles:
        raise GraftError(findings.obstacles)
    blocks = {path: [block for file, block in findings.blocks if file.path == path] for path in state.bare}
    wanted = {path: insert_blocks(source, blocks[path]) for path, source in state.bare.items()}
    for path, source in wanted.items():
        if blocks[path]:
            _check(source, state.bare[path], state.code_base.name(path))
    files = {path: source for path, source in wanted.items() if source != state.sources[path]}
    state.check_links(files)
    inserted = {text for source in wanted.values() for _, text in read_blocks(source)}
    return Change(state, files, payload(findings.own_types, inserted), findings.notes)


def _check(source: bytes, bare: bytes, name: str) -> None:
    """The result must be Python, and lose nothing when the blocks are removed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that the file had before
            ast.parse(source)
    except SyntaxError as error:
        raise GraftError(
            [Obstacle(f"{name}:{error.lineno}", f"with the inserted lines: {error.msg}", "see patches/README.md")]
        ) from error
    if remove_blocks(source, name) != bare:
        raise GraftError([Obstacle(name, "the inserted lines could not be removed exactly", "see patches/README.md")])


def plan_revert(state: State) -> Change:
    """The change that removes the connectors.

    Raises:
        GraftError: the folder or a block holds somebody's work.
    """
    if state.manifest is None and not state.blocks:
        return Change(state, {}, state.folder)
    state.check_own()
    files = {path: source for path, source in state.bare.items() if source != state.sources[path]}
    state.check_links(files)
    by_hand = [path for path, source in state.bare.items() if state.code_base.folder.name.encode() in source]
    notes = [f"{state.code_base.name(path)} still imports the connectors, by hand" for path in by_hand]
    return Change(state, files, None, notes)
