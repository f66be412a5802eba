"""Add the connectors to a LLaVA code base, or remove them.

python -m patches.graft PATH [--check | --apply | --revert | --status]

Without an option nothing is written: the changes are printed as a unified diff. The exit status is 0 if they can be
made (or nothing is to be done), 1 if something is in the way; then the reasons are printed, with what to do by hand.
"""

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patches.plan import Change, State


def build_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = argparse.ArgumentParser(
        prog="python -m patches.graft",
        description="Add the vision-language connectors to a LLaVA code base, or remove them.",
    )
    parser.add_argument("path", type=Path, help="a LLaVA checkout, or the folder of an installed package")
    mode = parser.add_mutually_exclusive_group()
    for name, help_text in {
        "check": "print the changes, write nothing (default)",
        "apply": "make the changes; a second time, bring them up to date",
        "revert": "remove them, byte for byte",
        "status": "say what is there",
    }.items():
        aliases = ["--dry-run"] if name == "check" else []
        mode.add_argument(f"--{name}", *aliases, dest="mode", action="store_const", const=name, help=help_text)
    parser.set_defaults(mode="check")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    try:
        import libcst  # noqa: F401
    except ImportError:
        print("error: this needs libcst: pip install -e '.[patches]'", file=sys.stderr)
        return 1
    from patches.errors import GraftError

    try:
        return run(args.path, args.mode)
    except GraftError as error:
        print(f"error: nothing was written.\n{error}", file=sys.stderr)
    except OSError as error:
        print(f"error: nothing was changed: {error}", file=sys.stderr)
    return 1


def run(path: Path, mode: str) -> int:
    """Do what `mode` says with the code base below `path`; the exit status.

    Raises:
        GraftError: something is in the way.
        OSError: a file cannot be read or written; everything is as it was.
    """
    from patches.code_base import find_code_base
    from patches.files import change_tree
    from patches.plan import plan_graft, plan_revert, read_state

    state = read_state(find_code_base(path))
    if mode == "status":
        print_status(state)
        return 0
    change = plan_revert(state) if mode == "revert" else plan_graft(state)
    if change.is_empty:
        print(f"{state.code_base.root}: nothing to change: {'no connectors' if mode == 'revert' else 'up to date'}")
        return 0
    if mode == "check":
        print_diff(change)
    else:
        change_tree(change.files, state.code_base.folder, change.folder)
        print_summary(change)
    for note in change.notes:
        print(f"note: {note}")
    return 0


def print_diff(change: "Change") -> None:
    """The change as a unified diff; files of the connectors' folder by name only."""
    code_base, state = change.state.code_base, change.state
    for path, new in change.files.items():
        name = code_base.name(path)
        old_lines, new_lines = (text.decode(errors="replace").splitlines() for text in (state.sources[path], new))
        print("\n".join(difflib.unified_diff(old_lines, new_lines, f"a/{name}", f"b/{name}", lineterm="")))
    if change.folder != state.folder:
        verb = "replaced" if state.folder else "new"
        print(f"{verb} folder {code_base.name(code_base.folder)}: {len(change.folder or {})} files")


def print_summary(change: "Change") -> None:
    """What was done."""
    code_base = change.state.code_base
    for path in change.files:
        print(f"changed {code_base.name(path)}")
    folder = code_base.name(code_base.folder)
    print(f"removed {folder}" if change.folder is None else f"wrote {folder}: {len(change.folder)} files")


def print_status(state: "State") -> None:
    """Which version is there, and what was edited since."""
    from patches.payload import version

    code_base = state.code_base
    print(f"{code_base.root} (package {code_base.package})")
    if state.manifest is None:
        print("connectors: none")
    else:
        print(f"connectors: version {state.manifest.get('version')} (this program has {version()})")
    for path, blocks in state.blocks.items():
        print(f"  {code_base.name(path)}: {len(blocks)} inserted block{'s' if len(blocks) > 1 else ''}")
    for name in state.edited if state.manifest is not None else ():
        print(f"  {code_base.name(code_base.folder)}/{name}: changed or added since the folder was copied")
    for place in state.edited_blocks:
        print(f"  {place}: this inserted block was edited")


if __name__ == "__main__":
    sys.exit(main())
