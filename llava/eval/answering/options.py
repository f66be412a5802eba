"""Options of a run of an answer generator: model, files, and how replies are decoded."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from llava.program import RequestError

NUM_WORKERS = 4  # processes that prepare queries


@dataclass(frozen=True)
class RunOptions:
    """How a list of queries is answered.

    Attributes:
        model_path, model_base: see `load_pretrained_model`.
        answers_file: path of the answers.
        conv_mode: name of the prompt template.
        batch_size: number of queries answered at once.
        resume: keep the answers that the file already holds.
        record_run: write the settings of the run into the metadata of each answer.
        mm_num_visual_tokens, mm_projector_type: another budget or connector than the checkpoint's.

    Raises:
        RequestError: the batch size is not positive.
    """

    model_path: str
    answers_file: str
    conv_mode: str
    model_base: str | None = None
    batch_size: int = 1
    resume: bool = False
    record_run: bool = False
    mm_num_visual_tokens: int | None = None
    mm_projector_type: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RequestError(f"--batch-size is {self.batch_size}; it must be 1 or more")


@dataclass(frozen=True)
class DecodingOptions:
    """How replies are generated.

    Attributes:
        temperature: 0 means greedy decoding, or beam search.
        top_p: nucleus for sampling; None is the whole distribution, whatever generation_config.json says.
        num_beams: number of beams.
        max_new_tokens: longest reply.

    Raises:
        RequestError: a value is out of range.
    """

    temperature: float = 0.2
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        for flag, value in (("num_beams", self.num_beams), ("max_new_tokens", self.max_new_tokens)):
            if value < 1:
                raise RequestError(f"--{flag} is {value}; it must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RequestError(f"--top_p is {self.top_p}; it must be above 0, and 1 or less")
        if math.isnan(self.temperature):
            raise RequestError("--temperature is nan; it must be a number, 0 for greedy decoding")

    def for_generate(self) -> dict[str, Any]:
        """Return keyword arguments of `generate_replies`."""
        return asdict(self) | {"top_p": 1.0 if self.top_p is None else self.top_p}
