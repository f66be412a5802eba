"""The flags of a training run, as its program would read them."""

from argparse import Namespace
from typing import NoReturn

from llava.program import RequestError


def parse_flags(flags: list[str]) -> Namespace:
    """Values and defaults of all training flags, by the dataclasses of the training program.

    Nothing is set up: no device, no process group. `given` is the set of the flags that were stated.

    Raises:
        RequestError: a flag is unknown, its value is of the wrong kind, or the flags contradict one another.
    """
    import transformers

    from llava.train.arguments import (
        DataArguments,
        ModelArguments,
        TrainingArguments,
        connector_arguments,
        settle_packing,
    )

    class Parser(transformers.HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise RequestError(f"the training program would refuse its flags: {message}")

    parser = Parser((ModelArguments, DataArguments, TrainingArguments, connector_arguments()), add_help=False)
    values = parser.parse_args(flags)
    try:
        settle_packing(values)
    except ValueError as error:
        raise RequestError(str(error)) from error
    values.given = {flag.lstrip("-").partition("=")[0] for flag in flags if flag.startswith("--")}
    return values


def elastic_budgets(flags: Namespace) -> list[int]:
    """The budgets of `--mm_elastic_budgets 17,33,65`; empty without it.

    Raises:
        RequestError: they are no numbers.
    """
    try:
        return [int(part) for part in str(flags.mm_elastic_budgets or "").replace(",", " ").split()]
    except ValueError:
        raise RequestError(f"--mm_elastic_budgets {flags.mm_elastic_budgets} must be numbers, as in 17,33,65") from None
