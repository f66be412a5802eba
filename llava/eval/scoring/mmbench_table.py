"""MMBench's table of multiple-choice questions: read in one way by the generator, the scorer and the converter."""

import itertools
import os
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llava.extras import require_extra
from llava.program import RequestError

if TYPE_CHECKING:
    import pandas


def read_table(
    path: str, required: Sequence[str], leave_out: Sequence[str] = (), as_text: bool = False
) -> "pandas.DataFrame":
    """Read a tab-separated table.

    Args:
        path: `~` is expanded.
        required: columns that must exist.
        leave_out: columns that are not read, if they exist.
        as_text: keep cells as texts; otherwise pandas turns columns of numbers into numbers.

    Raises:
        ImportError: pandas is missing; names the extra.
        RequestError: the file is not such a table.
    """
    require_extra("pandas", "eval")
    import pandas

    try:
        columns = (lambda name: name not in leave_out) if leave_out else None
        table = pandas.read_table(os.path.expanduser(path), dtype=str if as_text else None, usecols=columns)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise RequestError(f"{path}: not a tab-separated table ({str(error).strip()}); is it MMBench's?") from error
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise RequestError(
            f"{path}: no column {' and no column '.join(missing)}, only {', '.join(map(str, table.columns[:8]))}; is "
            "it a table of MMBench?"
        )
    return table


def rows_of(table: "pandas.DataFrame") -> list[dict[str, Any]]:
    """Return the rows as plain Python values, which JSON can represent."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.astype(object).itertuples(index=False)]


def option_letters(columns: Iterable[str]) -> list[str]:
    """Return the letters of a table's option columns: A, B, ... up to the first that has no column."""
    columns = set(columns)
    return list(itertools.takewhile(columns.__contains__, string.ascii_uppercase))


def options_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return letter -> option of a row, up to the first missing option."""
    present = itertools.takewhile(lambda letter: not is_missing(row[letter]), option_letters(row))
    return {letter: row[letter] for letter in present}


def is_missing(value: Any) -> bool:
    """Return True for an empty cell: None, NaN, no text, or one of the texts `nan` and `none`."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan", "none")
    return value is None or value != value
