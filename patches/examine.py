"""Look for every touch point of a code base, and for what the connectors cannot serve in it."""

from pathlib import Path

import libcst

from patches.code_base import BUILDER, CodeBase
from patches.errors import GraftError
from patches.syntax import Function, SourceFile, calls, code, last_name
from patches.touch_points import (
    ENCODE,
    FACTORY,
    INITIALIZE,
    PREPARE,
    Findings,
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


def examine(code_base: CodeBase, sources: dict[Path, bytes], connector_names: set[str]) -> Findings:
    """Find the touch points.

    Args:
        sources: the Python files of the model and `train.py`, without blocks of ours.
        connector_names: all values of `mm_projector_type` that the connectors bring.
    """
    findings = Findings()
    files = [file for file in (_parse(code_base, path, sources, findings) for path in code_base.model_files) if file]
    for file in files:
        if file.path == code_base.root / BUILDER:
            touch_factory(file, code_base.connectors_from(file.path), connector_names, findings)
    for name, touch in METHODS.items():
        for file, function in _methods(files, name, findings):
            touch(file, function, code_base.connectors_from(file.path), findings)
    for file in files:
        owners = {id(f.owner): f.owner for f in file.functions(PREPARE) if f.owner and not calls_super(f)}
        for owner in owners.values():
            touch_class(file, owner, code_base.connectors_from(file.path), findings)
        _check_factory_import(file, findings)
        _note_direct_calls(file, findings)
    if code_base.train.is_file():
        file = _parse(code_base, code_base.train, sources, findings)
        if file is not None:
            touch_arguments(file, code_base.package, findings)
    else:
        findings.notes.append("no train/train.py: no flags were added, models with connectors can be used, not trained")
    return findings


def _parse(code_base: CodeBase, path: Path, sources: dict[Path, bytes], findings: Findings) -> SourceFile | None:
    """A file that has to do with images; None for others, and for one that does not parse."""
    words = (FACTORY, *METHODS, "mm_projector", "ModelArguments")
    if not any(word.encode() in sources[path] for word in words):
        return None
    try:
        return code_base.parse(path, sources[path])
    except GraftError as error:
        findings.obstacles += error.obstacles
        return None


def _methods(files: list[SourceFile], name: str, findings: Findings) -> list[tuple[SourceFile, Function]]:
    """All methods of a name that do the work themselves."""
    found = [(file, function) for file in files for function in file.functions(name) if function.owner]
    own = [(file, f) for file, f in found if not calls_super(f) and not is_abstract(f)]
    if not own:
        findings.refuse("model/", f"no class has a method {name}", f"write {name} as LLaVA-1.5 has it")
    return own


def _check_factory_import(file: SourceFile, findings: Findings) -> None:
    """The factory must be the one in builder.py where projectors are built."""
    if not file.functions(INITIALIZE):
        return
    for node in libcst.matchers.findall(file.module, libcst.matchers.ImportFrom()):
        names = [] if isinstance(node.names, libcst.ImportStar) else [code(alias.name) for alias in node.names]
        module = "" if node.module is None else code(node.module)
        if FACTORY in names and not module.endswith(("multimodal_projector.builder", "multimodal_projector")):
            findings.refuse(
                file.name,
                f"{FACTORY} comes from {module}, not from {BUILDER}",
                "import it from there, or insert the block of the factory in that module",
            )


def _note_direct_calls(file: SourceFile, findings: Findings) -> None:
    for function in file.all_functions:
        if function.name != ENCODE and any(last_name(name) == "mm_projector" for name, _ in calls(function.node)):
            findings.notes.append(
                f"{file.place(function.node)}: {function.name} calls mm_projector by itself; with a connector it "
                "raises an error"
            )
