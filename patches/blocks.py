"""Insert and remove bracketed blocks of whole lines, so that removing them restores every byte."""

from dataclasses import dataclass

from patches.errors import GraftError, Obstacle

BEGIN, END = b"# >>> llava-connectors", b"# <<< llava-connectors"


@dataclass(frozen=True)
class Block:
    """Lines to insert into a file.

    Attributes:
        line: number of the line, from 1, that the block comes in front of.
        indent: white space in front of each line.
        lines: the code, without brackets; a leading tab in a line is one more level.
        level: white space of one more level.
    """

    line: int
    indent: bytes
    lines: tuple[str, ...]
    level: bytes


def insert_blocks(source: bytes, blocks: list[Block]) -> bytes:
    """`source` with the blocks; line ends are those of the line in front of which a block goes."""
    lines = source.splitlines(keepends=True)
    for block in sorted(blocks, key=lambda block: block.line, reverse=True):
        end_of_line = _line_end(lines, block.line)
        body = [line.encode().replace(b"\t", block.level) for line in block.lines]
        whole = [block.indent + line if line else b"" for line in (BEGIN, *body, END)]
        lines[block.line - 1 : block.line - 1] = [line + end_of_line for line in whole]
    return b"".join(lines)


def _line_end(lines: list[bytes], line: int) -> bytes:
    neighbour = lines[line - 2] if line >= 2 else lines[0]
    return neighbour[len(neighbour.rstrip(b"\r\n")) :]


def remove_blocks(source: bytes, name: str) -> bytes:
    """`source` without the blocks.

    Raises:
        GraftError: a bracket is missing.
    """
    kept: list[bytes] = []
    begin = 0
    for number, line in enumerate(source.splitlines(keepends=True), 1):
        bracket = line.strip()
        if bracket == BEGIN and not begin:
            begin = number
        elif bracket == END and begin:
            begin = 0
        elif bracket in (BEGIN, END):
            raise _unbalanced(name, number)
        elif not begin:
            kept.append(line)
    if begin:
        raise _unbalanced(name, begin)
    return b"".join(kept)


def read_blocks(source: bytes) -> list[tuple[int, bytes]]:
    """The blocks of a file: the line each begins at, and its code without what formatters change to break lines."""
    blocks: list[tuple[int, bytes]] = []
    inside = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.strip() == BEGIN:
            blocks.append((number, b""))
            inside = True
        elif line.strip() == END:
            inside = False
        elif inside:
            begin, text = blocks.pop()
            blocks.append((begin, text + b"".join(line.split()).translate(None, b"(),")))
    return blocks


def _unbalanced(name: str, line: int) -> GraftError:
    return GraftError(
        [
            Obstacle(
                f"{name}:{line}",
                f"a bracket of an inserted block has no partner ({BEGIN.decode()} ... {END.decode()})",
                "remove the rest of this block, then start again",
            )
        ]
    )
