"""How command line programs end: what the user can repair is reported in one line, without a traceback."""

import sys
from collections.abc import Callable

from llava.images import ImageError


class RequestError(ValueError):
    """Something asked for that cannot be done as it stands; the message says what to change."""


# Anything else is a fault of the program and keeps its traceback.
USER_ERRORS = (RequestError, ImageError, OSError, ImportError)


def run_program(main: Callable[[], None]) -> None:
    """Run a program; an error of its user ends it with status 1 and one message on stderr, Ctrl-C with status 130."""
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
