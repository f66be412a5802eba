"""Look for every touch point of a code base, and for what the connectors cannot serve in it."""

from pathlib import Path

import libcst

from patches.code_base import BUILDER, CodeBase
from patches.errors import GraftError
from patches.syntax import Function, SourceFile, calls, code, find, last_name
from patches.touch_points import (
    ENCODE,
    FACTORY,
    INITIALIZE,
    PREPARE,
    Findings,
    calls_connectors,
    calls_super,
    is_abstract,
    touch_arguments,
    touch_class,
    touch_encode_images,
    touch_factory,
    touch_initialize,
    touch_prepare,
)

METHODS = {ENCODE: touch_encode_images, INITIALIZE: touch_initialize, PREPARE: touch_prepare}


def examine(code_base: CodeBase, sources: dict[Path, bytes], connector_names: frozenset[str]) -> Findings:
    """Find the touch points.

    Args:
        sources: the Python files of the model and `train.py`, without blocks of ours.
        connector_names: all values of `mm_projector_type` that the connectors bring.
    """
    findings = Findings()
    files = [file for file in (_parse(code_base, path, sources, findings) for path in code_base.model_files) if file]
    if findings.obstacles:  # what is missing may be in a file that does not parse
        return findings
    for file in files:
        if file.path == code_base.root / BUILDER:
            touch_factory(file, code_base.connectors_from(file.path), connector_names, findings)
    family = _Family(files)
    for name, touch in METHODS.items():
        for file, function in _methods(files, name, family, findings):
            if not function.takes_self:
                findings.refuse(
                    file.place(function.node), f"{name} does not take self first", f"write {name} as an ordinary method"
                )
            elif not calls_connectors(function.node):
                touch(file, function, code_base.connectors_from(file.path), findings)
    for file, owner in family.parents():
        touch_class(file, owner, code_base.connectors_from(file.path), findings)
    _check_factories(code_base, files, findings)
    for file in files:
        _note_direct_calls(file, findings)
    if code_base.train.is_file():
        file = _parse(code_base, code_base.train, sources, findings)
        if file is not None:
            touch_arguments(file, _model_package(file, code_base), findings)
    else:
        findings.notes.append("no train/train.py: no flags were added, models with connectors can be used, not trained")
    return findings


def _parse(code_base: CodeBase, path: Path, sources: dict[Path, bytes], findings: Findings) -> SourceFile | None:
    """A file that has to do with images; None for others, and for one that does not parse."""
    needed = path in (code_base.root / BUILDER, code_base.train)
    if not needed and not any(word.encode() in sources[path] for word in (FACTORY, *METHODS, "mm_projector")):
        return None
    try:
        return code_base.parse(path, sources[path])
    except GraftError as error:
        findings.obstacles += error.obstacles
        return None


def _methods(
    files: list[SourceFile], name: str, family: "_Family", findings: Findings
) -> list[tuple[SourceFile, Function]]:
    """All methods of a name that do the work themselves."""
    found = [(file, function) for file in files for function in file.functions(name)]
    own = [(file, f) for file, f in found if f.owner and not calls_super(f) and not is_abstract(f)]
    if name == ENCODE:  # vision towers may have such a method too, and no projector
        own = [(file, f) for file, f in own if family.has(f.owner) or "mm_projector" in code(f.owner)]
    if not own:
        findings.refuse("model/", f"no class has a method {name}", f"write {name} as LLaVA-1.5 has it")
    return own


class _Family:
    """The classes that prepare the inputs of a language model, and who inherits from them, by name."""

    def __init__(self, files: list[SourceFile]) -> None:
        self.owners = {
            id(f.owner): (file, f.owner)
            for file in files
            for f in file.functions(PREPARE)
            if f.owner and not calls_super(f) and not is_abstract(f)
        }
        self._names = {node.name.value for _, node in self.owners.values()}
        self._bases: dict[str, set[str]] = {}
        for node in (node for file in files for node in file.all_classes):
            bases = {last_name(code(base.value)) for base in node.bases}
            self._bases.setdefault(node.name.value, set()).update(bases)

    def parents(self) -> list[tuple[SourceFile, libcst.ClassDef]]:
        """Those that inherit from no other."""
        owners = self.owners.values()
        return [(file, node) for file, node in owners if not self._ancestors(node.name.value) & self._names]

    def has(self, node: libcst.ClassDef) -> bool:
        """Whether a class is one of them, inherits from one, or is inherited by one."""
        name = node.name.value
        return bool(
            name in self._names
            or self._ancestors(name) & self._names
            or any(name in self._ancestors(owner) for owner in self._names)
        )

    def _ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        left = [name]
        while left:
            new = self._bases.get(left.pop(), set()) - found - {name}
            found |= new
            left += new
        return found


def _model_package(file: SourceFile, code_base: CodeBase) -> str:
    """The absolute name of the folder `model`, as `train.py` imports it: a package need not be named like its folder,
    and a checkout may be run from any folder.
    """
    imports = [node for node in find(file.module, libcst.ImportFrom) if node.module is not None and not node.relative]
    modules = [code(node.module).split(".") for node in imports]
    for parts in modules:
        for count in range(1, len(parts) + 1):
            if tuple(parts[:count]) == code_base.root.parts[-count:]:
                return ".".join([*parts[:count], "model"])
    for parts in modules:
        if "model" in parts:
            end = parts.index("model") + 1
            below = code_base.root.joinpath("model", *parts[end:])
            if below.is_dir() or below.with_suffix(".py").is_file():
                return ".".join(parts[:end])
    return f"{code_base.package}.model"


def _check_factories(code_base: CodeBase, files: list[SourceFile], findings: Findings) -> None:
    """The factory must be the one in builder.py where projectors are built."""
    builder = code_base.root / BUILDER
    others = [(file, f) for file in files if file.path != builder for f in file.functions(FACTORY) if not f.owner]
    if any(calls_connectors(function.node) for _, function in others):
        return
    builds = [file for file in files if file.functions(INITIALIZE)]
    for file, function in others:
        if file in builds:
            findings.refuse(
                file.place(function.node), f"{FACTORY} is defined here, not in {BUILDER}", f"move it to {BUILDER}"
            )
            return
        else:
            findings.notes.append(
                f"{file.place(function.node)}: a second {FACTORY}; connectors are built by {BUILDER} only"
            )
    package = builder.parent / "__init__.py"
    for file in [*builds, *(file for file in files if file.path == package)]:
        wanted = (".builder",) if file.path == package else (".multimodal_projector.builder", ".multimodal_projector")
        modules = _imported_from(file, FACTORY)
        for module in modules:
            if not f".{module}".endswith(wanted):
                findings.refuse(
                    file.name, f"{FACTORY} comes from {module}, not from {BUILDER}", f"move it to {BUILDER}"
                )
        if not modules and any(name == FACTORY for name, _ in calls(file.module)):
            remedy = f"import {FACTORY} from {BUILDER}"
            findings.refuse(file.name, f"{FACTORY} is called here, but not imported by its name", remedy)


def _imported_from(file: SourceFile, name: str) -> list[str]:
    """The modules that a name is imported from, as written."""
    found = []
    for node in find(file.module, libcst.ImportFrom):
        for alias in () if isinstance(node.names, libcst.ImportStar) else node.names:
            if name in (alias.evaluated_name, alias.evaluated_alias):
                module = "" if node.module is None else code(node.module)
                found.append("." * len(node.relative) + module)
    return found


def _note_direct_calls(file: SourceFile, findings: Findings) -> None:
    for function in file.all_functions:
        if function.name == ENCODE and not calls_super(function):
            continue
        if any(last_name(name) == "mm_projector" for name, _ in calls(function.node)):
            findings.notes.append(
                f"{file.place(function.node)}: {function.name} calls mm_projector by itself; with a connector it "
                "raises an error"
            )
