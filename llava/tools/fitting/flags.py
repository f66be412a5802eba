"""The flags of a training run, as its program would read them."""

from argparse import ArgumentParser, Namespace
from typing import NoReturn

from llava.program import RequestError


def parse_flags(flags: list[str]) -> Namespace:
    """Values and defaults of all training flags, by the dataclasses of the training program.

    Nothing is set up: no device, no process group. `given` is the set of the flags that were stated.

    Raises:
        RequestError: a flag is unknown, or its value is of the wrong kind.
    """
    from dataclasses import fields

    import transformers

    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, connector_arguments

    class Parser(transformers.HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise RequestError(f"the training program would refuse its flags: {message}")

    classes = (ModelArguments, DataArguments, TrainingArguments, connector_arguments())
    parser = Parser(classes, add_help=False)
    known = {field.name for own in classes for field in fields(own)}
    _add_engine_flags(parser, known)
    values = parser.parse_args(flags)
    values.given = {flag.lstrip("-").partition("=")[0] for flag in flags if flag.startswith("--")}
    return values


def _add_engine_flags(parser: ArgumentParser, known: set[str]) -> None:
    from transformers.hf_argparser import string_to_bool

    for name in {"packing", "chunked_loss"} - known:
        parser.add_argument(f"--{name}", type=string_to_bool, nargs="?", const=True, default=False)
    if "packing_length" not in known:
        parser.add_argument("--packing_length", type=int, default=None)
    if "mm_elastic_budgets" not in known:
        parser.add_argument("--mm_elastic_budgets", default=None)


def elastic_budgets(flags: Namespace) -> list[int]:
    """The budgets of `--mm_elastic_budgets 17,33,65`; empty without it.

    Raises:
        RequestError: they are no numbers.
    """
    try:
        return [int(part) for part in str(flags.mm_elastic_budgets or "").replace(",", " ").split()]
    except ValueError:
        raise RequestError(f"--mm_elastic_budgets {flags.mm_elastic_budgets} must be numbers, as in 17,33,65") from None
