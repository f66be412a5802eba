"""The answers file of a generator: one JSON object per line, whole lines only, and resumable (contract: eval.md 1)."""

import fcntl
import json
import logging
import os
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llava.eval.scoring.json_files import parse_object
from llava.files import write_text_atomically
from llava.program import RequestError

logger = logging.getLogger(__name__)

# 57 signs that are not mistaken for one another; 22 of them hold the 128 bits of a UUID.
_ID_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ID_LENGTH = 22

# What tells one question's line from another's: some benchmarks ask twice under one id, or in several rounds.
KEY_FIELDS = ("question_id", "prompt", "round_id")

# What of a recorded run must be the same for all answers of a file; device and batches may differ.
RUN_FIELDS = (
    *("connector", "num_visual_tokens"),
    *("conv_mode", "temperature", "top_p", "num_beams", "max_new_tokens"),
)

Writer = Callable[[int, dict[str, Any]], None]


class AnswersFile:
    """The answers to a list of questions, and which of them an earlier run has written already.

    Args:
        path: of the file; `~` is expanded. Its folder is made when it is opened (E-1).
        questions: per question, the fields of its line that are known beforehand.
        resume: keep the answers that are there.
        key_fields: the fields that tell the questions apart.

    Raises:
        RequestError: the path is not that of a file; with `resume`, the file holds something else than answers to these
            questions.
    """

    def __init__(
        self,
        path: str,
        questions: Sequence[dict[str, Any]],
        resume: bool = False,
        key_fields: Sequence[str] = KEY_FIELDS,
    ) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        if not path or (os.path.exists(self.path) and not os.path.isfile(self.path)):
            raise RequestError(
                f"--answers-file is {path!r}, which is no file; name one, for example answers/model.jsonl"
            )
        self._key_fields = key_fields
        self._resume = resume
        self._num_bytes = 0  # length of the lines that are kept
        self._order: list[int] = []  # index of the question that each line answers
        self._models: set[str] = set()
        self._runs: dict[str, dict[str, Any]] = {}  # the different recorded runs of the lines that are kept
        self.missing = list(range(len(questions)))
        if resume and os.path.exists(self.path):
            self._take_over(questions)

    def _key(self, line: dict[str, Any]) -> str:
        return json.dumps([line.get(field) for field in self._key_fields])

    def _take_over(self, questions: Sequence[dict[str, Any]]) -> None:
        unanswered: dict[str, deque[int]] = defaultdict(deque)
        for index, question in enumerate(questions):
            unanswered[self._key(question)].append(index)
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # the last line of a run that was stopped in the middle of it
                self._num_bytes += len(line)
                record = parse_object(line.decode("utf-8", "replace"), f"{self.path}, line {number}")
                indices = unanswered[self._key(record)]
                if not indices:
                    raise RequestError(
                        f"{self.path}, line {number}: not an answer to one of these questions; --resume needs the "
                        "question file, the chunk and the flags of the first run, or another --answers-file"
                    )
                self._order.append(indices.popleft())
                if "model_id" in record:
                    self._models.add(str(record["model_id"]))
                if isinstance(record.get("metadata"), dict):
                    run = {field: record["metadata"][field] for field in RUN_FIELDS if field in record["metadata"]}
                    self._runs[repr(run)] = run
        self.missing = sorted(set(self.missing) - set(self._order))

    def check_run(self, name: str, facts: Mapping[str, Any]) -> None:
        """
        Args:
            name: of the model.
            facts: of this run, as far as they are known; compared with what the answers record of theirs, if anything.

        Raises:
            RequestError: the answers that are kept are another model's, or made with other settings.
        """
        others = sorted(self._models - {name})
        if others:
            raise RequestError(
                f"{self.path} holds answers of {', '.join(others)}, not of {name}; give another --answers-file"
            )
        for run in self._runs.values():
            differences = [
                f"{field} {run[field]} instead of {facts[field]}"
                for field in RUN_FIELDS
                if field in run and field in facts and run[field] != facts[field]
            ]
            if differences:
                raise RequestError(
                    f"{self.path} holds answers made with {', '.join(differences)}; give the first run's flags, or "
                    "another --answers-file"
                )

    @contextmanager
    def open(self) -> Iterator[Writer]:
        """Gives a function `write(index of the question, its line)`.

        Every line reaches the file at once and whole: a long run can be watched, and stopped. When the block ends well
        the lines are put in the order of the questions, should a resumed run have filled gaps.

        Raises:
            RequestError: another process is writing the file.
        """
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, self.path)
            if not self._resume and os.fstat(descriptor).st_size:
                logger.warning("%s is written anew; its earlier answers are replaced (--resume keeps them).", self.path)
            os.ftruncate(descriptor, self._num_bytes)
            os.lseek(descriptor, self._num_bytes, os.SEEK_SET)

            def write(index: int, line: dict[str, Any]) -> None:
                data = (json.dumps(line) + "\n").encode()
                written = os.write(descriptor, data)
                if written != len(data):  # the disk is full: do not leave half a line
                    os.ftruncate(descriptor, self._num_bytes)
                    raise OSError(
                        f"{self.path}: only {written} of {len(data)} bytes could be written; is the disk full?"
                    )
                self._num_bytes += written
                self._order.append(index)

            yield write
        finally:
            os.close(descriptor)
        self._sort()

    def _sort(self) -> None:
        if self._order == sorted(self._order):
            return
        with open(self.path, encoding="utf-8") as file:
            lines = dict(zip(self._order, file, strict=True))
        write_text_atomically(self.path, "".join(lines[index] for index in sorted(lines)))
        self._order.sort()


def _lock(descriptor: int, path: str) -> None:
    """Until the file is closed, no other run writes it: the lines of two would overwrite one another."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RequestError(
            f"{path} is being written by another process; end that, or give another --answers-file"
        ) from error
    except OSError as error:  # some network file systems have no locks
        logger.info("%s cannot be locked (%s).", path, error)


def answer_record(question_id: Any, prompt: str, text: str, model_id: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """One line of an answers file."""
    return {
        "question_id": question_id,
        "prompt": prompt,
        "text": text,
        "answer_id": short_uuid(),
        "model_id": model_id,
        "metadata": metadata,
    }


def short_uuid() -> str:
    """A random UUID in 22 letters and digits."""
    number = uuid.uuid4().int
    signs = []
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, len(_ID_ALPHABET))
        signs.append(_ID_ALPHABET[digit])
    return "".join(signs)
