"""Error handling of command-line programs: errors that the user can fix are one line, without a traceback."""

import sys
from collections.abc import Callable

from llava.images import ImageError


class RequestError(ValueError):
    """The request cannot be fulfilled; the message says what to change."""


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
