"""The places where a code base meets the connectors: each is found by name and gets one block of lines.

A place whose owner has inserted the call by hand stays as it is.
"""

from dataclasses import dataclass, field

import libcst

from patches.blocks import Block
from patches.encode_body import beside_tower_and_projector
from patches.errors import Obstacle
from patches.syntax import Function, SourceFile, assignments, calls, code, find, last_name, returns, statements

FACTORY = "build_vision_projector"
ENCODE, PREPARE, INITIALIZE = "encode_images", "prepare_inputs_labels_for_multimodal", "initialize_vision_modules"
SUBCLASS = "__init_subclass__"
ARGUMENTS = "ModelArguments"

PREPARE_PARAMETERS = (
    ("input_ids", "position_ids", "attention_mask", "past_key_values", "labels", "images"),
    ("input_ids", "attention_mask", "past_key_values", "labels", "images"),  # before LLaVA 1.1.3
)


@dataclass
class Findings:
    """What was found in a code base.

    Attributes:
        blocks: to insert, by file.
        obstacles: what is missing or taken.
        notes: what will not work with the connectors, though nothing is in the way.
        own_types: names of connectors that the code base's own factory knows.
    """

    blocks: list[tuple[SourceFile, Block]] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    own_types: set[str] = field(default_factory=set)

    def refuse(self, where: str, reason: str, remedy: str) -> None:
        self.obstacles.append(Obstacle(where, reason, remedy))


def touch_factory(file: SourceFile, import_from: str, connector_names: frozenset[str], findings: Findings) -> None:
    """`build_vision_projector(config, ...)`: asks the connectors first."""
    found = [function for function in file.functions(FACTORY) if function.owner is None]
    texts = find(file.module, libcst.SimpleString)  # also of a table beside the function
    findings.own_types |= {str(text.evaluated_value) for text in texts} & connector_names
    for name in sorted(findings.own_types):
        findings.notes.append(f"{file.name}: --mm_projector_type {name} still means this code base's own projector")
    if any(calls_connectors(function.node) for function in found):
        return
    if len(found) != 1:
        lines = ", ".join(str(file.first_line(function.node)) for function in found)
        findings.refuse(
            file.name,
            f"{FACTORY} is defined {len(found)} times (lines {lines})" if found else f"there is no {FACTORY}",
            f"keep one function {FACTORY}(config, ...) that builds every projector",
        )
        return
    function = found[0]
    if not function.parameters:
        findings.refuse(file.place(function.node), f"{FACTORY} takes no configuration", "give it the model's config")
        return
    lines = (
        f"from {import_from} import build_connector as build_llava_connector",
        f"llava_connector = build_llava_connector({function.parameters[0]})",
        "if llava_connector is not None:",
        "\treturn llava_connector",
    )
    _at_top(file, function.node, lines, findings)


def touch_encode_images(file: SourceFile, function: Function, import_from: str, findings: Findings) -> None:
    """`encode_images(self, images)`: the connectors encode where one of them is the model's projector."""
    if not function.parameters:
        findings.refuse(file.place(function.node), f"{ENCODE} takes no images", f"write {ENCODE}(self, images)")
        return
    lines = (
        f"from {import_from} import encode_images as encode_with_llava_connector",
        f"llava_connector_tokens = encode_with_llava_connector(self, {function.parameters[0]})",
        "if llava_connector_tokens is not None:",
        "\treturn llava_connector_tokens",
    )
    more = beside_tower_and_projector(function.node)
    if more is not None:
        findings.refuse(
            file.place(function.node),
            f"{ENCODE} is more than vision tower and projector: it {more}",
            "if connectors may replace all of it, insert at its top:" + _as_text(lines),
        )
        return
    _at_top(file, function.node, lines, findings)


def touch_initialize(file: SourceFile, function: Function, import_from: str, findings: Findings) -> None:
    """`initialize_vision_modules(self, model_args, ...)`: the connector's settings follow LLaVA's own."""
    lines = (
        f"from {import_from} import write_settings as write_llava_connector_settings",
        f"write_llava_connector_settings(self, {_first(function)})",
    )
    keys = ("config.mm_projector_type", "config.mm_hidden_size")
    build = _build_statement(function.node.body, keys) if function.parameters else None
    if build is None:
        findings.refuse(
            file.place(function.node),
            f"{INITIALIZE} does not first write {' and '.join(keys)} and then call {FACTORY}",
            f"in front of the line that builds mm_projector, insert:{_as_text(lines)}",
        )
        return
    _insert(file, file.first_line(build), file.indent(build), lines, findings)


def touch_prepare(file: SourceFile, function: Function, import_from: str, findings: Findings) -> None:
    """`prepare_inputs_labels_for_multimodal(self, ...)`: images that become weights take no place in the sequence."""
    known = next((names for names in PREPARE_PARAMETERS if tuple(function.parameters[: len(names)]) == names), None)
    unchanged = (known or PREPARE_PARAMETERS[0])[1:-2]  # all but input_ids, labels and images
    results = ", ".join(["None", *unchanged, "assembled.inputs_embeds", "assembled.labels"])
    lines = (
        f"from {import_from} import assemble_inputs as assemble_llava_connector_inputs",
        "assembled = assemble_llava_connector_inputs(self, input_ids, attention_mask, labels, images)",
        "if assembled is not None:",
        f"\treturn {results}",
    )
    returned = {_tuple_length(node) for node in returns(function.node)} - {None}
    if known is None or returned != {len(known)}:
        counts = " or ".join(str(count) for count in sorted(returned)) or "other"
        findings.refuse(
            file.place(function.node),
            f"{PREPARE}({', '.join(function.parameters)}), which returns {counts} values, has other parameters or "
            "results than LLaVA's",
            f"insert at its top, with its own names and results:{_as_text(lines)}",
        )
        return
    _at_top(file, function.node, lines, findings)


def touch_class(file: SourceFile, node: libcst.ClassDef, import_from: str, findings: Findings) -> None:
    """The mixin of all causal language models: their `forward` and `generate` carry image weights."""
    lines = (
        f"def {SUBCLASS}(cls, **kwargs):",
        "\tsuper().__init_subclass__(**kwargs)",
        f"\tfrom {import_from} import carry_weights",
        "\tcarry_weights(cls)",
        "",
    )
    if any(function.owner is node and calls_connectors(function.node) for function in file.functions(SUBCLASS)):
        return
    if any(function.owner is node for function in file.functions("forward")):
        call = f"carry_weights({node.name.value})"
        if call not in file.module.code:
            findings.refuse(
                file.place(node),
                f"{node.name.value} has both {PREPARE} and forward, so it is no parent class of the language models",
                f"after the class, insert:{_as_text((lines[2].strip(), call))}",
            )
        return
    if any(function.owner is node for function in file.functions(SUBCLASS)):
        findings.refuse(
            file.place(node),
            f"{node.name.value} has a {SUBCLASS} of its own",
            f"add to it:{_as_text((lines[2].strip(), lines[3].strip()))}",
        )
        return
    _at_top(file, node, lines, findings)


def touch_arguments(file: SourceFile, model: str, findings: Findings) -> None:
    """`class ModelArguments`: a flag for every setting of a connector.

    Args:
        model: the absolute name of the package's folder `model`.
    """
    found = file.classes(ARGUMENTS)
    if "with_connector_flags" in file.module.code:
        return
    lines = (
        f"from {model}.llava_connectors import with_connector_flags",
        f"{ARGUMENTS} = with_connector_flags({ARGUMENTS})",
    )
    if len(found) != 1 or found[0] not in file.module.body:
        findings.refuse(
            file.name,
            f"there is no class {ARGUMENTS}"
            if not found
            else f"class {ARGUMENTS} is not defined once, at the top level of the file",
            f"after the class of the model's flags, insert:{_as_text(lines)}",
        )
        return
    if not any(last_name(code(each.decorator).split("(")[0]) == "dataclass" for each in found[0].decorators):
        findings.refuse(
            file.place(found[0]), f"{ARGUMENTS} is no dataclass", f"add the flags to it, or insert:{_as_text(lines)}"
        )
        return
    last = file.last_line(found[0])
    if not file.ends_with_newline(last):
        findings.refuse(f"{file.name}:{last}", "the file does not end with a new line", "add one")
        return
    _insert(file, last + 1, b"", lines, findings)


def calls_super(function: Function) -> bool:
    """Whether a method leaves the work to its parent class, which it calls as `super()` or by name."""
    bases = [code(base.value) for base in function.owner.bases] if function.owner else []
    parents = [f"{base}.{function.name}" for base in bases]
    return any(
        (name.startswith("super(") and last_name(name) == function.name) or name in parents
        for name, _ in calls(function.node)
    )


def calls_connectors(node: libcst.CSTNode) -> bool:
    """Whether the owner of the code base has inserted the call of the connectors by hand."""
    return "llava_connectors" in code(node)


def is_abstract(function: Function) -> bool:
    """Whether a method has no body to speak of."""
    body = statements(function.node)
    text = code(function.node.body) if body is None else "\n".join(code(statement) for statement in body)
    return text in ("", "pass", "...") or text.startswith("raise NotImplementedError")


def _first(function: Function) -> str:
    return function.parameters[0] if function.parameters else "model_args"


def _as_text(lines: tuple[str, ...]) -> str:
    """Code in a message."""
    return "".join(f"\n        {line}".replace("\t", "    ") for line in lines)


def _tuple_length(node: libcst.CSTNode) -> int | None:
    value = getattr(node, "value", None)
    return len(value.elements) if isinstance(value, libcst.Tuple) else None


def _at_top(
    file: SourceFile, node: libcst.FunctionDef | libcst.ClassDef, lines: tuple[str, ...], findings: Findings
) -> None:
    body = statements(node)
    if not body:
        findings.refuse(
            file.place(node),
            f"the body of {node.name.value} is on one line" if body is None else f"{node.name.value} has no body",
            f"write its body on lines of its own, or insert at its top:{_as_text(lines)}",
        )
        return
    _insert(file, file.first_line(body[0]), file.indent(body[0]), lines, findings)


def _insert(file: SourceFile, line: int, indent: bytes, lines: tuple[str, ...], findings: Findings) -> None:
    findings.blocks.append((file, Block(line, indent, lines, file.level)))


def _build_statement(body: libcst.BaseSuite, keys: tuple[str, ...]) -> libcst.BaseStatement | None:
    """The statement that calls the factory, if all keys are written in front of it and none after."""
    if not isinstance(body, libcst.IndentedBlock):
        return None
    written = [{key for key in keys for target, _ in assignments(part) if target.endswith(key)} for part in body.body]
    builds = [any(last_name(name) == FACTORY for name, _ in calls(part)) for part in body.body]
    if not any(builds) or set().union(*written) != set(keys):
        return None
    build, last_write = builds.index(True), max(i for i, own in enumerate(written) if own)
    if last_write < build:
        return body.body[build]
    inner = getattr(body.body[build], "body", None)
    rest = tuple(key for key in keys if key in written[build])  # the others were written in front of it
    return _build_statement(inner, rest) if last_write == build and inner is not None else None
