"""Change several files and one folder of a tree: all or nothing."""

import contextlib
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
        changed: files that exist, with their new content; their owner and permissions stay. A hard link of a file keeps
            the old content.
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
        # Everything is written before the first file is replaced: replacing takes no space on the disk.
        copies: list[tuple[Path, Path, Path]] = []
        for number, (path, data) in enumerate(changed.items()):
            original, wanted, backup = path.resolve(), Path(work, f"wanted-{number}"), Path(work, f"backup-{number}")
            wanted.write_bytes(data)
            _make_alike(original, wanted)
            os.utime(wanted)  # Python compiles it anew
            shutil.copy2(original, backup)
            _make_alike(original, backup)
            copies.append((original, wanted, backup))
        undo: list[tuple[Path, Path]] = []  # where it is now, where it belongs
        try:
            for original, wanted, backup in copies:
                undo.append((backup, original))
                os.replace(wanted, original)
            if folder.exists():
                os.rename(folder, old)
                undo.append((old, folder))
            if content is not None:
                os.rename(new, folder)
        except BaseException:
            for kept, path in reversed(undo):
                shutil.move(kept, path)
            raise


def _make_alike(original: Path, copy: Path) -> None:
    """Give a copy the owner and permissions of the original."""
    status = original.stat()
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.chown(copy, status.st_uid, status.st_gid)
    shutil.copystat(original, copy)
