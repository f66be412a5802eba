"""Metrics of TextVQA, ST-VQA and TextCaps (contract: eval.md 4.3, 4.4, 5)."""

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from llava.eval.scoring.answer_normalisation import normalise_answer
from llava.eval.scoring.answers import IncompleteError

Prediction = Mapping[str, Any]  # {"pred_answer": str, "gt_answers": [str, ...]}

HUMAN_ANSWERS = 10


class EvalAIAnswerProcessor:
    """Normal form of an answer: `processor(text)`."""

    def __call__(self, item: str) -> str:
        return normalise_answer(item)


def human_accuracy(matches: int, answers: int = HUMAN_ANSWERS) -> float:
    """Accuracy of an answer that `matches` of the humans gave: the mean over all ways to leave one human out of
    min(1, matches among the others / 3). For ten humans 0, 0.3, 0.6, 0.9, 1, 1, ...
    """
    left_out_agrees = matches * min(1.0, (matches - 1) / 3)
    left_out_differs = (answers - matches) * min(1.0, matches / 3)
    return (left_out_agrees + left_out_differs) / answers


def answer_scores(answers: Sequence[str]) -> dict[str, float]:
    """Every different normalised answer of the ten humans and the accuracy of giving it.

    Raises:
        IncompleteError: not ten answers.
    """
    if len(answers) != HUMAN_ANSWERS:
        raise IncompleteError(f"{len(answers)} human answers; the metric is defined for {HUMAN_ANSWERS}")
    normalised = [normalise_answer(answer) for answer in answers]
    return {answer: human_accuracy(normalised.count(answer)) for answer in dict.fromkeys(normalised)}


class TextVQAAccuracyEvaluator:
    """Accuracy against ten human answers."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return answer_scores(answers).get(self.answer_processor(prediction), 0.0)

    def eval_pred_list(self, pred_list: Sequence[Prediction]) -> float:
        """Mean score, 0 to 1."""
        return _mean([self.score(entry["pred_answer"], entry["gt_answers"]) for entry in pred_list])


class STVQAAccuracyEvaluator:
    """1 for a prediction that is among the answers, in normal form."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return float(self.answer_processor(prediction) in map(self.answer_processor, answers))

    def eval_pred_list(self, pred_list: Sequence[Prediction]) -> float:
        """Mean score, 0 to 1."""
        return _mean([self.score(entry["pred_answer"], entry["gt_answers"]) for entry in pred_list])


class STVQAANLSEvaluator:
    """1 - edit distance / longer length to the nearest answer; 0 where that is below 0.5.

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
        """Mean score, 0 to 1."""
        return _mean(
            [max(self.get_anls(entry["pred_answer"], answer) for answer in entry["gt_answers"]) for entry in pred_list]
        )


class TextCapsBleu4Evaluator:
    """BLEU-4 of captions.

    Raises:
        ModuleNotFoundError: `pycocoevalcap` is not installed.
    """

    def __init__(self) -> None:
        self.tokenizer = _optional("pycocoevalcap.tokenizer.ptbtokenizer", "pycocoevalcap").PTBTokenizer()
        self.scorer = _optional("pycocoevalcap.bleu.bleu", "pycocoevalcap").Bleu(4)

    def eval_pred_list(self, pred_list: Sequence[Prediction]) -> float:
        """BLEU-4 of all captions together, 0 to 1."""
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
