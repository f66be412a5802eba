"""One run of an answer generator: queries in, answers file out."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from llava.chat import check_template
from llava.eval.answering.answerer import Answerer
from llava.eval.answering.answers_file import KEY_FIELDS, AnswersFile, answer_record
from llava.eval.answering.loader import Failure, MakePrompt, QueryDataset, chat_prompt, query_loader
from llava.eval.answering.model_names import model_name
from llava.eval.answering.options import NUM_WORKERS, DecodingOptions, RunOptions
from llava.eval.answering.queries import Query
from llava.inference import connector_overrides
from llava.program import RequestError

# (query, reply, name of the model, metadata) -> line of the answers file
ToLine = Callable[[Query, str, str, dict[str, Any]], dict[str, Any]]


def standard_line(query: Query, text: str, model: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the line that most generators write."""
    return answer_record(query.fields["question_id"], query.fields["prompt"], text, model, metadata)


def answer_queries(
    queries: Sequence[Query],
    run: RunOptions,
    decoding: DecodingOptions,
    *,
    to_line: ToLine = standard_line,
    key_fields: Sequence[str] = KEY_FIELDS,
    make_prompt: MakePrompt = chat_prompt,
    num_workers: int = NUM_WORKERS,
) -> None:
    """Open the model and write its answers to the answers file, line by line, in order.

    A query that cannot be prepared is reported on standard error and left out; the others are answered. Without queries
    the file is empty, and no model is loaded.

    Args:
        to_line: builds a line of the answers file.
        key_fields: the fields of a line that identify its query, for --resume.
        make_prompt: builds the prompt.
        num_workers: largest number of processes that prepare queries.

    Raises:
        RequestError: unknown template, or an answers file that cannot be resumed; at the end, if some query was not
            answered.
    """
    check_template(run.conv_mode)
    file = AnswersFile(run.answers_file, [query.fields for query in queries], run.resume, key_fields)
    overrides = connector_overrides(run)
    settings = {"conv_mode": run.conv_mode, "batch_size": run.batch_size} | asdict(decoding)
    connector = {"connector": run.mm_projector_type} if run.mm_projector_type else {}
    file.check_run(model_name(run.model_path), settings | connector)  # before a model is loaded
    # Only the open model knows its number of visual tokens: some connectors round --mm_num_visual_tokens.
    if not queries or not (file.missing or run.mm_num_visual_tokens is not None):
        with file.open():
            return
    answerer = Answerer.open(run.model_path, run.model_base, **overrides)
    facts = answerer.facts() | settings
    file.check_run(answerer.name, facts)
    asked = [queries[index] for index in file.missing]
    dataset = QueryDataset(
        asked, answerer.tokenizer, answerer.image_processor, answerer.model.config, run.conv_mode, make_prompt
    )
    failures = 0
    start = time.monotonic()
    with file.open() as write, tqdm(initial=len(queries) - len(asked), total=len(queries)) as progress:
        for batch in query_loader(dataset, run.batch_size, num_workers):
            for item in batch:
                if isinstance(item, Failure):
                    failures += 1
                    question_id = asked[item.index].fields.get(key_fields[0])
                    tqdm.write(f"question {question_id}: {item.error}", file=sys.stderr)
            examples = [item for item in batch if not isinstance(item, Failure)]
            replies = answerer.answer_batch(examples, decoding)
            end = time.monotonic()
            seconds, start = round((end - start) / max(1, len(examples)), 4), end  # per answer, preparation included
            for example, text in zip(examples, replies, strict=True):
                metadata = facts | {"seconds": seconds} if run.record_run else {}
                line = to_line(asked[example.index], text, answerer.name, metadata)
                write(file.missing[example.index], line)
            progress.update(len(batch))
    if failures:
        raise RequestError(
            f"{failures} of {len(queries)} questions were not answered, for the reasons above; the others are in "
            f"{file.path}. --resume asks only those that are missing"
        )
