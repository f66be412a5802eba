"""The folder that goes into a code base: the connectors, the bridge, and a description of both."""

import ast
import hashlib
import json
import re
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONNECTORS = REPOSITORY / "llava/model/multimodal_projector"
BRIDGE = REPOSITORY / "patches/bridge"
MANIFEST = "manifest.json"

README = """# Vision-language connectors

Copied here by `python -m patches.graft` of the project "LLaVA-1.5 with better vision-language connectors"
(package `llava`), version {version}. License: Apache-2.0, see LICENSE.

Connectors: {names}.

Do not edit these files: the next version replaces them. The code base calls them in blocks of lines between
`# >>> llava-connectors` and `# <<< llava-connectors`. `python -m patches.graft --revert PATH` removes the blocks and
this folder.
"""

HOST = '''"""What differs between code bases. Written by `patches.graft`."""

# Values of mm_projector_type that the code base's own factory knows and that connectors have too; they stay with it.
OWN_TYPES: frozenset[str] = frozenset({names})
'''


def version() -> str:
    """The version of this project."""
    return re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE).group(1)


@cache
def connector_names() -> frozenset[str]:
    """All values of `mm_projector_type` that the connectors bring; read from the source, which needs no torch."""
    names = set()
    for path in CONNECTORS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Call(func=ast.Name("register_connector"), args=[ast.Constant(str(name)), *_]):
                    names.add(name)
    return frozenset(names - {"linear", "identity"})


def payload(own_types: set[str], blocks: set[bytes]) -> dict[str, bytes]:
    """The files of the folder by relative path.

    Args:
        own_types: connector names that stay with the code base.
        blocks: the inserted code, by which a later run sees whether somebody has edited it.
    """
    files = {f"multimodal_projector/{path.name}": path.read_bytes() for path in sorted(CONNECTORS.glob("*.py"))}
    for path in sorted(BRIDGE.glob("*.py")):
        source = path.read_bytes()
        files[path.name] = source.replace(b"from llava.model.multimodal_projector", b"from .multimodal_projector")
    kept = ", ".join(f'"{name}"' for name in sorted(own_types))
    files["host.py"] = HOST.format(names=f"{{{kept}}}" if kept else "").encode()
    files["LICENSE"] = (REPOSITORY / "LICENSE").read_bytes()
    names = ", ".join(f"`{name}`" for name in sorted(connector_names() - own_types))
    files["README.md"] = README.format(version=version(), names=names).encode()
    manifest = {
        "version": version(),
        "files": {name: digest(content) for name, content in files.items()},
        "blocks": sorted(map(digest, blocks)),
    }
    files[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    return files


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
