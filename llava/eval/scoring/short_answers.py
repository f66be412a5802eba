"""Metrics of short answers and captions: TextVQA, ST-VQA and TextCaps, with upstream's names."""

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from llava.eval.scoring.accuracy import human_accuracy
from llava.eval.scoring.answer_normalisation import normalise_answer
from llava.eval.scoring.answers import IncompleteError

Prediction = Mapping[str, Any]  # {"pred_answer": str, "gt_answers": [str, ...]}

HUMAN_ANSWERS = 10


class EvalAIAnswerProcessor:
    """Callable that returns the normal form of an answer."""

    def __call__(self, item: str) -> str:
        return normalise_answer(item)


def answer_scores(answers: Sequence[str]) -> dict[str, float]:
    """Return normalised answer -> accuracy of giving it, for every different one of ten human answers.

    Raises:
        IncompleteError: there are not ten answers.
    """
    if len(answers) != HUMAN_ANSWERS:
        raise IncompleteError(f"{len(answers)} human answers; the metric is defined for {HUMAN_ANSWERS}")
    normalised = [normalise_answer(answer) for answer in answers]
    return {answer: human_accuracy(normalised.count(answer)) for answer in dict.fromkeys(normalised)}


class TextVQAAccuracyEvaluator:
    """TextVQA: accuracy against ten human answers."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return answer_scores(answers).get(self.answer_processor(prediction), 0.0)

    def eval_pred_list(self, pred_list: Sequence[Prediction]) -> float:
        """Return the mean score, 0 to 1."""
        return _mean([self.score(entry["pred_answer"], entry["gt_answers"]) for entry in pred_list])


class STVQAAccuracyEvaluator:
    """ST-VQA: 1 if the normalised prediction is among the normalised answers, else 0."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return float(self.answer_processor(prediction) in map(self.answer_processor, answers))

    def eval_pred_list(self, pred_list: Sequence[Prediction]) -> float:
        """Return the mean score, 0 to 1."""
        return _mean([self.score(entry["pred_answer"], entry["gt_answers"]) for entry in pred_list])


class STVQAANLSEvaluator:
    """ST-VQA, ANLS: 1 - edit distance / longer length for the nearest answer; 0 if that is below 0.5.

    Raises:
        ModuleNotFoundError: `editdistance` is not installed.
    """

    def __init__(self) -> None:
        self.get_edit_distance = _optional("editdistance", "editdistance").eval

    def get_anls(self, s1: str, s2: str) -> float:
        s1, s2 = s1.lower().strip(), s2.lower().strip()
        longer = max(len(s1), len(s2))
        if longer == 0:
            return 1.0
        similarity = 1 - self.get_edit_distance(s1, s2) / longer
        return similarity if similarity >= 0.5 else 0.0

    def eval_pred_list(self, pred_list: Sequence[Prediction]) -> float:
        """Return the mean score, 0 to 1."""
        return _mean(
            [max(self.get_anls(entry["pred_answer"], answer) for answer in entry["gt_answers"]) for entry in pred_list]
        )


class TextCapsBleu4Evaluator:
    """TextCaps: BLEU-4 of captions.

    Raises:
        ModuleNotFoundError: `pycocoevalcap` is not installed.
    """

    def __init__(self) -> None:
        self.tokenizer = _optional("pycocoevalcap.tokenizer.ptbtokenizer", "pycocoevalcap").PTBTokenizer()
        self.scorer = _optional("pycocoevalcap.bleu.bleu", "pycocoevalcap").Bleu(4)

    def eval_pred_list(self, pred_list: Sequence[Prediction]) -> float:
        """Return BLEU-4 over all captions, 0 to 1."""
        references = {n: [{"caption": text} for text in entry["gt_answers"]] for n, entry in enumerate(pred_list)}
        captions = {n: [{"caption": entry["pred_answer"]}] for n, entry in enumerate(pred_list)}
        scores, _ = self.scorer.compute_score(self.tokenizer.tokenize(references), self.tokenizer.tokenize(captions))
        return scores[3]


def _mean(scores: Sequence[float]) -> float:
    if not scores:
        raise IncompleteError("there are no predictions to score")
    return sum(scores) / len(scores)


def _optional(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; this metric needs it: pip install {package}", name=error.name) from error
