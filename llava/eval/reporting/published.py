"""Published results of AcFormer (arXiv 2405.17815) and VLoRA (arXiv 2405.20339)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The columns of both papers' main tables. MME is perception plus cognition, MME-P is perception alone.
ACFORMER_BENCHMARKS = ("POPE", "MME", "MMB", "MM-Vet", "TextVQA", "GQA", "VQAv2", "VizWiz", "SQA")
VLORA_BENCHMARKS = ("MMB", "MME-P", "SQA", "HallusionBench", "MMMU", "CCBench")

# The connector ablation: columns, then connector -> visual tokens -> scores, per size of the language model.
BENCHMARKS = ("TextVQA", "GQA", "MMB", "MME")
ABLATION_7B = {
    "pooling": {65: (53.4, 59.8, 66.8, 1734.0), 145: (55.1, 60.9, 68.0, 1791.4)},
    "pooling_pr": {65: (53.9, 60.0, 66.8, 1728.9), 145: (54.7, 60.9, 68.0, 1759.1)},
    "random_pr": {65: (53.9, 59.1, 66.9, 1728.7), 145: (54.6, 59.7, 67.0, 1772.7)},
    "perceiver": {
        65: (51.0, 56.1, 63.2, 1702.8),
        145: (52.1, 56.4, 65.4, 1720.8),
        257: (52.3, 56.8, 65.7, 1735.9),
    },
    "c_abstractor": {
        65: (52.8, 59.0, 67.0, 1743.3),
        145: (53.4, 60.2, 67.8, 1775.4),
        257: (53.7, 60.8, 68.3, 1790.0),
    },
    "acformer": {
        65: (56.1, 59.2, 67.3, 1744.2),
        145: (58.0, 61.3, 68.4, 1846.1),
        257: (58.2, 61.2, 68.3, 1848.8),
    },
    "top_p": {145: (56.3, 60.8, 68.2, 1798.8)},
    "evit": {145: (57.1, 61.0, 68.3, 1808.4)},
}
ABLATION_13B = {
    "perceiver": {145: (53.4, 56.9, 64.7, 1749.3)},
    "c_abstractor": {145: (58.5, 62.1, 68.8, 1823.6)},
    "acformer": {145: (60.7, 62.8, 69.2, 1869.3)},
}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        name: name of the model.
        num_visual_tokens: visual tokens per image; None if the paper does not state them.
        scores: benchmark -> score.
        speed: throughput of stage 1 relative to LLaVA-1.5 with the same language model; None if not stated.
    """

    name: str
    num_visual_tokens: int | None
    scores: Mapping[str, float] = field(default_factory=dict)
    speed: float | None = None


_LLAVA_7B = (85.9, 1794.6, 64.3, 30.5, 58.2, 62.0, 78.5, 50.0, 66.8)
_LLAVA_13B = (85.9, 1826.7, 67.7, 35.4, 61.2, 63.3, 80.0, 53.6, 71.6)

ACFORMER_MAIN = (
    PublishedRow("LLaVA-1.5-7B", 576, dict(zip(ACFORMER_BENCHMARKS, _LLAVA_7B, strict=True)), 1.0),
    PublishedRow("AcFormer-7B", 145, {"POPE": 86.4, "MME": 1846.1, "MMB": 68.4, "MM-Vet": 30.3}, 2.23),
    PublishedRow("AcFormer-7B", 257, {"TextVQA": 58.2, "GQA": 61.2, "VQAv2": 78.4, "VizWiz": 52.8, "SQA": 69.4}, 1.65),
    PublishedRow("LLaVA-1.5-13B", 576, dict(zip(ACFORMER_BENCHMARKS, _LLAVA_13B, strict=True)), 1.0),
    PublishedRow("AcFormer-13B", 145, {"POPE": 86.1, "MME": 1870.0, "MMB": 69.2, "MM-Vet": 34.1}, 2.30),
    PublishedRow("AcFormer-13B", 257, {"TextVQA": 61.3, "GQA": 63.0, "VQAv2": 79.8, "VizWiz": 53.7, "SQA": 71.8}, 1.69),
)

# The paper lists E-ViT in the column of 145 tokens and states that it has one more.
_MORE_TOKENS = {"evit": 1}

ACFORMER_ABLATION = tuple(
    PublishedRow(
        f"{connector}, {size}",
        tokens + _MORE_TOKENS.get(connector, 0),
        dict(zip(BENCHMARKS, scores, strict=True)),
    )
    for size, table in (("7B", ABLATION_7B), ("13B", ABLATION_13B))
    for connector, by_tokens in table.items()
    for tokens, scores in by_tokens.items()
)

_VLORA_TABLE: Mapping[str, tuple[int | None, tuple[float, ...]]] = {
    "MiniGPT-4-v2": (None, (24.3, 708.4, 54.1, 30.0, 25.0, 1.4)),
    "Idefics-instruct": (None, (48.2, 942.0, 51.6, 27.3, 18.4, 7.8)),
    "OpenFlamingo v2": (None, (6.6, 535.0, 45.7, 29.4, 28.2, 6.3)),
    "Qwen-VL-Chat": (None, (60.6, 1467.8, 65.5, 36.8, 37.0, 41.2)),
    "LLaVA-v1.5-7B": (576, (64.3, 1510.7, 66.8, 27.6, 35.7, 27.5)),
    "VLoRA-v1-7B": (0, (63.4, 1311.3, 66.4, 26.4, 33.7, 28.6)),
}
VLORA_MAIN = tuple(
    PublishedRow(name, tokens, dict(zip(VLORA_BENCHMARKS, scores, strict=True)))
    for name, (tokens, scores) in _VLORA_TABLE.items()
)

# Data scaling: OpenLLaMA-3B with 145 visual tokens, 60 M pairs in stage 1, two mixtures in stage 2.
SCALING_BENCHMARKS = ("TextVQA", "GQA", "OKVQA", "VQAv2", "VizWiz", "MME")
_SCALING: Mapping[str, tuple[float, ...]] = {
    "perceiver, 3B, LLaVA-665k": (35.03, 54.35, 54.14, 70.04, 31.16, 1592.7),
    "AcFormer, 3B, LLaVA-665k": (35.89, 55.45, 55.15, 72.76, 33.88, 1622.3),
    "perceiver, 3B, Cauldron": (38.76, 44.98, 49.66, 70.83, 32.87, 1502.5),
    "AcFormer, 3B, Cauldron": (40.49, 45.67, 50.57, 73.01, 32.97, 1523.1),
}
ACFORMER_SCALING = tuple(
    PublishedRow(name, 145, dict(zip(SCALING_BENCHMARKS, scores, strict=True))) for name, scores in _SCALING.items()
)
