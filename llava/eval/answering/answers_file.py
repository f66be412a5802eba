"""The answers file of a generator: one JSON object per line, written line by line, and resumable."""

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

# 57 characters without look-alikes; 22 of them encode the 128 bits of a UUID.
_ID_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ID_LENGTH = 22

# The fields that identify a question: some benchmarks ask twice under one id, or in several rounds.
KEY_FIELDS = ("question_id", "prompt", "round_id")

# Settings of a recorded run that all answers of a file must share; device and batch size may differ.
RUN_FIELDS = (
    *("connector", "num_visual_tokens"),
    *("conv_mode", "temperature", "top_p", "num_beams", "max_new_tokens"),
)

Writer = Callable[[int, dict[str, Any]], None]


class AnswersFile:
    """The answers to a list of questions, some of which an earlier run may have written.

    Args:
        path: path of the file; `~` is expanded. Its folder is created when the file is opened.
        questions: the fields of each question's line that are known before the reply.
        resume: keep the answers that the file already holds.
        key_fields: the fields that identify a question.

    Attributes:
        missing: indices of the questions that are not answered yet.

    Raises:
        RequestError: the path is not that of a file; or, with `resume`, the file holds something other than answers to
            these questions.
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
        self._num_bytes = 0  # length of the kept lines
        self._order: list[int] = []  # index of the question that each line answers
        self._models: set[str] = set()
        self._runs: dict[str, dict[str, Any]] = {}  # the distinct recorded runs of the kept lines
        self.missing = list(range(len(questions)))
        if resume and os.path.exists(self.path):
            self._read_earlier(questions)

    def _key(self, line: dict[str, Any]) -> str:
        return json.dumps([line.get(field) for field in self._key_fields])

    def _read_earlier(self, questions: Sequence[dict[str, Any]]) -> None:
        unanswered: dict[str, deque[int]] = defaultdict(deque)
        for index, question in enumerate(questions):
            unanswered[self._key(question)].append(index)
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # partial last line of a run that was killed
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
        """Compare this run with the kept answers, as far as they record theirs.

        Args:
            name: name of the model.
            facts: known settings of this run.

        Raises:
            RequestError: the kept answers are another model's, or made with other settings.
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
        """Yield a function `write(index of the question, its line)`.

        Every line is written at once and as a whole, so that a long run can be watched and killed. At the end, if a
        resumed run has filled gaps, the lines are sorted in the order of the questions.

        Raises:
            RequestError: another process is writing the file.
        """
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, self.path)
            if not self._resume and os.fstat(descriptor).st_size:
                logger.warning("%s is overwritten; its earlier answers are lost (--resume keeps them).", self.path)
            os.ftruncate(descriptor, self._num_bytes)
            os.lseek(descriptor, self._num_bytes, os.SEEK_SET)

            def write(index: int, line: dict[str, Any]) -> None:
                data = (json.dumps(line) + "\n").encode()
                written = os.write(descriptor, data)
                if written != len(data):  # the disk is full: leave no partial line
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
    """Lock the file until it is closed: the lines of two concurrent runs would overwrite each other."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RequestError(
            f"{path} is being written by another process; end that, or give another --answers-file"
        ) from error
    except OSError as error:  # some network file systems have no locks
        logger.info("%s cannot be locked (%s).", path, error)


def answer_record(question_id: Any, prompt: str, text: str, model_id: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return one line of an answers file."""
    return {
        "question_id": question_id,
        "prompt": prompt,
        "text": text,
        "answer_id": short_uuid(),
        "model_id": model_id,
        "metadata": metadata,
    }


def short_uuid() -> str:
    """Return a random UUID as 22 letters and digits."""
    number = uuid.uuid4().int
    characters = []
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, len(_ID_ALPHABET))
        characters.append(_ID_ALPHABET[digit])
    return "".join(characters)
