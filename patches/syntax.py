"""Find places in Python source by name, in a concrete syntax tree."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import libcst
from libcst.metadata import MetadataWrapper, PositionProvider

from patches.errors import GraftError, Obstacle

Node = TypeVar("Node", bound=libcst.CSTNode)


@dataclass(frozen=True)
class Function:
    """A function of a module, or a method of a class (`owner`)."""

    node: libcst.FunctionDef
    owner: libcst.ClassDef | None

    @property
    def name(self) -> str:
        return self.node.name.value

    @property
    def parameters(self) -> list[str]:
        """Names that can be given by position; without `self` in a method."""
        names = self._all_parameters
        return names[1:] if self.owner else names

    @property
    def takes_self(self) -> bool:
        return self._all_parameters[:1] == ["self"]

    @property
    def _all_parameters(self) -> list[str]:
        parameters = self.node.params
        return [p.name.value for p in (*parameters.posonly_params, *parameters.params)]


class SourceFile:
    """A parsed file.

    Attributes:
        name: as shown in messages.
        source: its bytes.

    Raises:
        GraftError: it does not parse.
    """

    def __init__(self, path: Path, name: str, source: bytes) -> None:
        self.path, self.name, self.source = path, name, source
        try:
            self._wrapper = MetadataWrapper(libcst.parse_module(source), unsafe_skip_copy=True)
        except (libcst.ParserSyntaxError, SyntaxError, UnicodeDecodeError) as error:  # SyntaxError: unknown encoding
            line = getattr(error, "raw_line", None)
            place = name if line is None else f"{name}:{line}"
            remedy = "mend the file, or leave it out of the package, then start again"
            raise GraftError([Obstacle(place, "this file does not parse as Python", remedy)]) from error

    @property
    def module(self) -> libcst.Module:
        return self._wrapper.module

    @cached_property
    def _positions(self) -> dict[libcst.CSTNode, libcst.metadata.CodeRange]:
        return dict(self._wrapper.resolve(PositionProvider))

    @cached_property
    def _lines(self) -> list[bytes]:
        return self.source.splitlines(keepends=True)

    def first_line(self, node: libcst.CSTNode) -> int:
        """The line a statement starts at, its decorators counted."""
        decorators = getattr(node, "decorators", ())
        return min(self._positions[part].start.line for part in (node, *decorators))

    def last_line(self, node: libcst.CSTNode) -> int:
        return self._positions[node].end.line

    def place(self, node: libcst.CSTNode) -> str:
        return f"{self.name}:{self.first_line(node)}"

    def indent(self, node: libcst.CSTNode) -> bytes:
        """The white space in front of a statement."""
        line = self._lines[self.first_line(node) - 1]
        return line[: len(line) - len(line.lstrip(b" \t"))]

    @property
    def level(self) -> bytes:
        return self.module.default_indent.encode()

    def ends_with_newline(self, line: int) -> bool:
        return self._lines[line - 1].endswith((b"\n", b"\r"))

    def functions(self, name: str) -> list[Function]:
        """All functions and methods of this name, in classes and at the top, also inside `if` and `try`."""
        return [function for function in self.all_functions if function.name == name]

    @cached_property
    def all_functions(self) -> list[Function]:
        return list(_walk(self.module, None))

    @cached_property
    def all_classes(self) -> list[libcst.ClassDef]:
        return list(find(self.module, libcst.ClassDef))

    def classes(self, name: str) -> list[libcst.ClassDef]:
        return [node for node in self.all_classes if node.name.value == name]


def children(node: libcst.CSTNode) -> Iterator[libcst.CSTNode]:
    """The parts of a node. `CSTNode.children` gives the same ten times slower."""
    for name in node.__dataclass_fields__:
        value = getattr(node, name)
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, libcst.CSTNode):
                yield part


def find(node: libcst.CSTNode, *kinds: type[Node], inside: bool = True) -> Iterator[Node]:
    """All nodes of some kinds inside a node.

    Args:
        inside: also those of functions and classes inside it.
    """
    for child in children(node):
        if isinstance(child, kinds):
            yield child
        if inside or not isinstance(child, libcst.FunctionDef | libcst.ClassDef):
            yield from find(child, *kinds, inside=inside)


def _walk(node: libcst.CSTNode, owner: libcst.ClassDef | None) -> Iterator[Function]:
    for child in children(node):
        if isinstance(child, libcst.FunctionDef):
            yield Function(child, owner)
        else:
            yield from _walk(child, child if isinstance(child, libcst.ClassDef) else owner)


def statements(node: libcst.FunctionDef | libcst.ClassDef) -> list[libcst.BaseStatement] | None:
    """The statements of a body after its docstring; None if they are on the line of the colon."""
    if not isinstance(node.body, libcst.IndentedBlock):
        return None
    body = list(node.body.body)
    return body[1:] if node.get_docstring() is not None else body


def calls(node: libcst.CSTNode) -> list[tuple[str, libcst.Call]]:
    """All calls inside a node with what is called, as a dotted name without white space: `self.get_model().
    mm_projector(x)` is `self.get_model().mm_projector`.
    """
    return [("".join(code(call.func).split()), call) for call in find(node, libcst.Call)]


def returns(node: libcst.FunctionDef) -> list[libcst.Return]:
    """The `return` statements of a function, without those of functions inside it."""
    return list(find(node.body, libcst.Return, inside=False))


def code(node: libcst.CSTNode) -> str:
    """A node as source, without white space around it."""
    return libcst.Module(body=()).code_for_node(node).strip()


def last_name(dotted: str) -> str:
    """`a.b().c` -> `c`."""
    return dotted.rsplit(".", 1)[-1]


def assignments(node: libcst.CSTNode) -> list[tuple[str, str]]:
    """Target and value of every assignment inside a node, as source."""
    found: list[tuple[str, str]] = []
    for each in find(node, libcst.Assign, libcst.AnnAssign):
        if isinstance(each, libcst.Assign):
            found += [(code(target.target), code(each.value)) for target in each.targets]
        elif each.value is not None:
            found.append((code(each.target), code(each.value)))
    return found
