"""One run of an answer generator: a list of queries in, an answers file out (contract: eval.md 1)."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from llava.chat import check_template
from llava.eval.answering.answerer import Answerer, AnswerOptions, Timer, model_name, run_facts
from llava.eval.answering.answers_file import KEY_FIELDS, AnswersFile, answer_record
from llava.eval.answering.queries import Failure, Query, QueryDataset, chat_prompt, query_loader
from llava.inference import connector_overrides
from llava.program import RequestError

NUM_WORKERS = 4

# (query, reply, name of the model, metadata) -> line of the answers file
ToLine = Callable[[Query, str, str, dict[str, Any]], dict[str, Any]]


def standard_line(query: Query, text: str, model: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The line that most generators write."""
    return answer_record(query.fields["question_id"], query.fields["prompt"], text, model, metadata)


def answer_queries(
    queries: Sequence[Query],
    args: Any,
    options: AnswerOptions,
    conv_mode: str,
    *,
    to_line: ToLine = standard_line,
    key_fields: Sequence[str] = KEY_FIELDS,
    make_prompt: Callable[[str, int, Any, str], str] = chat_prompt,
    num_workers: int = NUM_WORKERS,
) -> None:
    """Open the model of `args` and write its answers to `args.answers_file`, line by line, in order.

    A query that cannot be asked is reported in one line and left out; the others are answered all the same. Without
    queries the file is empty, and no model is loaded (E-2).

    Args:
        args: any object with the flags as attributes; those beyond upstream's may be missing.
        to_line: what a line looks like.
        key_fields: the fields of a line that tell the queries apart, for `--resume`.
        make_prompt: (message, number of pictures, model's configuration, conv_mode) -> prompt.
        num_workers: at most so many processes prepare the queries.

    Raises:
        RequestError: unknown template, bad flags, an answers file that cannot be resumed; at the end, some query was
            not answered.
    """
    check_template(conv_mode)
    batch_size = getattr(args, "batch_size", 1)
    if batch_size < 1:
        raise RequestError(f"--batch-size is {batch_size}; it must be 1 or more")
    file = AnswersFile(
        args.answers_file, [query.fields for query in queries], getattr(args, "resume", False), key_fields
    )
    overrides = connector_overrides(args)
    stated = {"conv_mode": conv_mode} | asdict(options)
    if "mm_projector_type" in overrides:
        stated["connector"] = overrides["mm_projector_type"]
    file.check_run(model_name(args.model_path), stated)  # before a model is loaded
    # Only the model knows what --mm_num_visual_tokens becomes: some connectors give a number nearby.
    if not queries or not (file.missing or "mm_num_visual_tokens" in overrides):
        with file.open():
            return
    answerer = Answerer.open(args.model_path, getattr(args, "model_base", None), **overrides)
    facts = run_facts(answerer, options, conv_mode, batch_size)
    file.check_run(answerer.name, facts)
    recorded = facts if getattr(args, "record_run", False) else None
    asked = [queries[index] for index in file.missing]
    dataset = QueryDataset(
        asked, answerer.tokenizer, answerer.image_processor, answerer.model.config, conv_mode, make_prompt
    )
    failures = 0
    timer = Timer()
    with file.open() as write, tqdm(initial=len(queries) - len(asked), total=len(queries)) as progress:
        for batch in query_loader(dataset, batch_size, num_workers):
            for item in batch:
                if isinstance(item, Failure):
                    failures += 1
                    tqdm.write(_explain(asked[item.index], item, key_fields[0]), file=sys.stderr)
            examples = [item for item in batch if not isinstance(item, Failure)]
            replies = answerer.answer_batch(examples, options)
            seconds = timer.lap(max(1, len(examples)))
            for example, text in zip(examples, replies, strict=True):
                metadata = {} if recorded is None else recorded | {"seconds": round(seconds, 4)}
                line = to_line(asked[example.index], text, answerer.name, metadata)
                write(file.missing[example.index], line)
            progress.update(len(batch))
    if failures:
        raise RequestError(
            f"{failures} of {len(queries)} questions were not answered, for the reasons above; the others are in "
            f"{file.path}. --resume asks only those that are missing"
        )


def _explain(query: Query, failure: Failure, id_field: str) -> str:
    return f"question {query.fields.get(id_field)}: {failure.error}"
