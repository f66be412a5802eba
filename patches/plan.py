"""What is in a code base now, and what adding or removing the connectors would change."""

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path

from patches.blocks import count_blocks, insert_blocks, remove_blocks
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
    def blocks(self) -> dict[Path, int]:
        """How many blocks each file has, where it has any."""
        counts = {path: count_blocks(source) for path, source in self.sources.items()}
        return {path: count for path, count in counts.items() if count}

    @property
    def edited(self) -> list[str]:
        """Files of the folder that were changed or added since they were copied."""
        known = {} if self.manifest is None else self.manifest["files"]
        own = {name: content for name, content in self.folder.items() if name != MANIFEST}
        return [name for name, content in own.items() if known.get(name) != digest(content)]

    def check_folder(self) -> None:
        """Refuse to replace a folder that holds somebody's work.

        Raises:
            GraftError: it is not from here, or was edited.
        """
        where = self.code_base.name(self.code_base.folder)
        if self.folder and self.manifest is None:
            raise GraftError([Obstacle(where, "there is such a folder already, not from this program", "rename it")])
        if self.edited:
            raise GraftError(
                [
                    Obstacle(
                        f"{where}/{name}", "this file was edited since it was copied", "move your change elsewhere"
                    )
                    for name in self.edited
                ]
            )


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
    state.check_folder()
    findings = examine(state.code_base, state.bare, connector_names())
    if findings.obstacles:
        raise GraftError(findings.obstacles)
    blocks = {path: [block for file, block in findings.blocks if file.path == path] for path in state.bare}
    wanted = {path: insert_blocks(source, blocks[path]) for path, source in state.bare.items()}
    for path, source in wanted.items():
        if blocks[path]:
            _check(source, state.bare[path], state.code_base.name(path))
    files = {path: source for path, source in wanted.items() if source != state.sources[path]}
    return Change(state, files, payload(findings.own_types), findings.notes)


def _check(source: bytes, bare: bytes, name: str) -> None:
    """The result must be Python, and lose nothing when the blocks are removed."""
    try:
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
        GraftError: the folder holds somebody's work.
    """
    state.check_folder()
    files = {path: source for path, source in state.bare.items() if source != state.sources[path]}
    return Change(state, files, None)
