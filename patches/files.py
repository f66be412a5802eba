"""Change several files and one folder of a tree: all or nothing."""

import os
import shutil
import tempfile
from pathlib import Path


def read_folder(folder: Path) -> dict[str, bytes]:
    """All files below a folder by relative path, without compiled Python; empty if there is no folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def change_tree(changed: dict[Path, bytes], folder: Path, content: dict[str, bytes] | None) -> None:
    """Give files new content and a folder new files, or remove it. A failure leaves everything as it was.

    Args:
        changed: files that exist, with their new content; their permissions stay.
        folder: replaced as a whole.
        content: its files by relative path; None removes it.

    Raises:
        OSError: a file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=".llava_connectors-", dir=folder.parent) as work:
        new, old = Path(work, "new"), Path(work, "old")
        for name, data in (content or {}).items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
        undo: list[tuple[Path, Path]] = []  # where it is now, where it belongs
        written = [(_write_beside(path.resolve(), data), path.resolve()) for path, data in changed.items()]
        try:
            for number, (temporary, path) in enumerate(written):
                backup = Path(work, f"backup-{number}")
                shutil.copy2(path, backup)
                undo.append((backup, path))
                os.replace(temporary, path)
            if folder.exists():
                os.rename(folder, old)
                undo.append((old, folder))
            if content is not None:
                os.rename(new, folder)
        except BaseException:
            for kept, path in reversed(undo):
                shutil.move(kept, path)
            raise
        finally:
            for temporary, _ in written:
                temporary.unlink(missing_ok=True)


def _write_beside(path: Path, data: bytes) -> Path:
    """A temporary file in the same folder, with the permissions of `path`."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    shutil.copymode(path, name)
    return Path(name)
