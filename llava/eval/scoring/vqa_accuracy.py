"""Accuracy of VQAv2 and VizWiz: an answer against those of ten people (https://visualqa.org/evaluation.html).

Accuracy of an answer = the mean, over all ways to leave one person out, of min(1, people among the others who gave it
/ 3). Answers are compared without newlines and tabs; and, unless all people gave the same one, in the benchmark's
normal form: punctuation, periods, number words, articles, contractions and capital letters, as in section 5 of the
contract without its first step.
"""

from collections.abc import Mapping, Sequence

from llava.eval.m4c_evaluator import human_accuracy
from llava.eval.scoring.answer_normalisation import normalise_words, remove_punctuation


def vqa_accuracy(prediction: str, people: Sequence[str]) -> float:
    """Accuracy of an answer, 0 to 1.

    Args:
        people: what the people answered; ten as a rule.
    """
    prediction, people = _plain(prediction), [_plain(answer) for answer in people]
    if len(set(people)) > 1:
        prediction, people = _normal(prediction), [_normal(answer) for answer in people]
    return human_accuracy(people.count(prediction), len(people))


def accuracies(predictions: Mapping[str, str], people: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Question -> accuracy of its prediction; 0 where there is none."""
    return {
        name: vqa_accuracy(predictions[name], answers) if name in predictions else 0.0
        for name, answers in people.items()
    }


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normal(text: str) -> str:
    return normalise_words(remove_punctuation(text))
