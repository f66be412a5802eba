"""Optional packages: a missing one raises an error that names the extra to install."""

import importlib.util


def require_extra(module: str, extra: str) -> None:
    """Raise unless `module` can be imported.

    Raises:
        ImportError: names the extra of this package that brings it.
    """
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{module} is needed for this and not installed: pip install 'llava[{extra}]'")
