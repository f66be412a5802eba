"""Metrics of TextVQA, ST-VQA and TextCaps, under upstream's module name: see llava.eval.scoring.short_answers."""

from llava.eval.scoring.short_answers import (
    EvalAIAnswerProcessor,
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextCapsBleu4Evaluator,
    TextVQAAccuracyEvaluator,
)

__all__ = [
    "EvalAIAnswerProcessor",
    "STVQAANLSEvaluator",
    "STVQAAccuracyEvaluator",
    "TextCapsBleu4Evaluator",
    "TextVQAAccuracyEvaluator",
]
