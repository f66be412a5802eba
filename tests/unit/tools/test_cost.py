"""The arithmetic of connectors, held to every published number of AcFormer and VLoRA."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.registry import CONNECTORS
from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.program import RequestError
from llava.tools.connector_costs import FLOPS, Shapes, connector_flops, count_tokens
from llava.tools.cost import BASELINE, LLMS, Cost, read_llm
from llava.tools.flops import (
    GeneratorShape,
    LLMShape,
    VisionShape,
    generator_flops,
    llm_forward_flops,
    low_rank_flops,
    resampler_flops,
    vit_flops,
)

TINY_CLIP = VisionShape(width=128, blocks=4, heads=4, side=8, patch_values=12 * 12 * 3)
TEXT_TOKENS = (32, 64, 128)
TOKENS = (65, 145, 257)
# Speed-up over 576 tokens; rows are text tokens, columns visual tokens.
PREFILL_7B = [(5.09, 3.10, 2.00), (4.27, 2.82, 1.91), (3.33, 2.44, 1.77)]
STAGE1_7B = [(5.59, 3.24, 2.04), (4.58, 2.93, 1.94), (3.48, 2.50, 1.79)]
RECOMPUTED_7B = [(5.81, 3.31, 2.06), (4.71, 2.98, 1.96), (3.55, 2.53, 1.81)]
STAGE1_13B = [(5.91, 3.34, 2.07), (4.77, 3.00, 1.97), (3.57, 2.55, 1.81)]


def test_language_model_weights() -> None:
    assert f"{LLMS['7b'].layer_weights / 1e9:.3f}" == "6.476"
    assert f"{LLMS['13b'].layer_weights / 1e9:.3f}" == "12.688"


def test_tower_and_resampler() -> None:
    assert (round(vit_flops(23) / 1e9), round(vit_flops(24) / 1e9)) == (366, 382)
    assert [f"{resampler_flops(tokens) / 1e9:.1f}" for tokens in TOKENS] == ["15.1", "24.7", "38.2"]


@pytest.mark.parametrize(
    ("llm", "measure", "table"),
    [
        ("7b", lambda cost: cost.prefill_flops, PREFILL_7B),
        ("7b", lambda cost: cost.stage1_step_flops(recompute=False), STAGE1_7B),
        ("7b", lambda cost: cost.stage1_step_flops(recompute=True), RECOMPUTED_7B),
        ("13b", lambda cost: cost.stage1_step_flops(recompute=False), STAGE1_13B),
    ],
    ids=["7b prefill", "7b stage 1", "7b stage 1 with recomputation", "13b stage 1"],
)
def test_speed_up_table(llm: str, measure: object, table: list[tuple[float, ...]]) -> None:
    def speed_up(tokens: int, text_tokens: int) -> str:
        ours = Cost("acformer", tokens, text_tokens, LLMS[llm])
        baseline = Cost(BASELINE, 576, text_tokens, LLMS[llm])
        return f"{measure(baseline) / measure(ours):.2f}"

    computed = [[speed_up(tokens, text_tokens) for tokens in TOKENS] for text_tokens in TEXT_TOKENS]
    assert computed == [[f"{number:.2f}" for number in row] for row in table]


def test_shares_of_the_step_that_the_contract_names() -> None:
    """The tower is 6-7 % of the 145-token step and 12 % at 65; the resampler adds under 2 % of the arithmetic."""

    def tower_percent(tokens: int, text_tokens: int) -> int:
        cost = Cost("acformer", tokens, text_tokens, LLMS["7b"])
        return round(100 * cost.tower_flops / cost.stage1_step_flops(recompute=False))

    assert [tower_percent(145, 64), tower_percent(145, 32), tower_percent(65, 32)] == [6, 7, 12]
    acformer, pooling = (
        Cost(name, 145, 64, LLMS["7b"]).stage1_step_flops(recompute=True) for name in ("acformer", "pooling")
    )
    assert pooling < acformer < 1.02 * pooling


# VLoRA: rows are text tokens 32, 64, 128, columns generator widths 512, 1024.
VLORA_PREFILL_7B = [(10.0, 9.0), (7.0, 6.6), (4.6, 4.4)]
VLORA_STAGE1_7B = [(12.3, 10.3), (8.0, 7.1), (4.9, 4.6)]
VLORA_RECOMPUTED_7B = [(13.8, 12.0), (8.5, 7.8), (5.1, 4.9)]
VLORA_PREFILL_13B = [(12.8, 11.8), (8.1, 7.8), (5.0, 4.9)]
VLORA_LLM_ONLY_7B = [(18.6, 18.6), (9.9, 9.9), (5.5, 5.5)]


@pytest.mark.parametrize(
    ("llm", "measure", "table"),
    [
        ("7b", lambda cost: cost.prefill_flops, VLORA_PREFILL_7B),
        ("7b", lambda cost: cost.llm_flops(logits=1), VLORA_LLM_ONLY_7B),
        ("7b", lambda cost: cost.stage1_step_flops(recompute=False), VLORA_STAGE1_7B),
        ("7b", lambda cost: cost.stage1_step_flops(recompute=True), VLORA_RECOMPUTED_7B),
        ("13b", lambda cost: cost.prefill_flops, VLORA_PREFILL_13B),
    ],
    ids=["7b prefill", "7b llm", "7b stage 1", "7b stage 1 with recomputation", "13b prefill"],
)
def test_vlora_speed_up_table(llm: str, measure: object, table: list[tuple[float, ...]]) -> None:
    for text_tokens, row in zip(TEXT_TOKENS, table, strict=True):
        baseline = Cost(BASELINE, 576, text_tokens, LLMS[llm])
        for width, expected in zip((512, 1024), row, strict=True):
            ours = Cost("vlora", 0, text_tokens, LLMS[llm], generator=GeneratorShape(width))
            # One cell, 10.3 of stage 1, is 10.246 here; all others are equal as printed.
            assert measure(baseline) / measure(ours) == pytest.approx(expected, abs=0.055), (text_tokens, width)


def test_vlora_arithmetic_and_memory() -> None:
    llm = LLMS["7b"]
    assert [float(f"{generator_flops(llm, shape=GeneratorShape(g)) / 1e9:.2g}") for g in (512, 1024)] == [38, 130]
    assert f"{low_rank_flops(llm, 1) / 1e9:.3f}" == "0.042"
    assert round(1000 * low_rank_flops(llm, 1) / llm_forward_flops(llm, 1, logits=0)) == 3  # 0.3 % of the LLM
    ours, baseline = Cost("vlora", 0, 64, llm), Cost(BASELINE, 576, 64, llm)
    assert (ours.slots, ours.positions) == (1, 65)
    assert [f"{c.image_cache_bytes() / 1e6:.1f}" for c in (ours, baseline)] == ["0.5", "302.0"]
    assert round(ours.weight_bytes() / 1e6) == 21 and baseline.weight_bytes() == 0
    joint = generator_flops(llm, shape=GeneratorShape(is_separate=False))
    assert joint < generator_flops(llm) / 2  # keys and values of the patches once instead of five times


@pytest.mark.parametrize(
    "shape", [GeneratorShape(32, 2, 8, "qkvom", 1), GeneratorShape(32, 1, 4, "mq", 2, is_separate=False)]
)
def test_vlora_is_counted_as_it_runs(shape: GeneratorShape) -> None:
    """Matrix products of the real generator, counted while it runs, and the size of what it gives; with GQA."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    llm, vision = LLMShape(64, 4, 128, 100, heads=8, kv_heads=2, head_dim=8), TINY_CLIP
    config = SimpleNamespace(
        mm_projector_type="vlora", mm_hidden_size=vision.width, hidden_size=64, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, vlora_dim=shape.width, vlora_depth=shape.depth, vlora_heads=4,
        vlora_rank=shape.rank, vlora_type=shape.letters, weights_sep=shape.is_separate, skip_layers=shape.skip,
        vlora_pos_num=vision.patches,
    )  # fmt: skip
    connector = build_vision_projector(config)
    features = VisionFeatures(torch.randn(1, 1 + vision.patches, vision.width))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not see fused attention
        weights = connector(features)
    assert counter.get_total_flops() == generator_flops(llm, vision, shape)
    assert sum(a.numel() for a in weights.inputs.values()) == shape.image_values(llm)
    outputs = sum(b.numel() for b in weights.outputs.values())
    assert low_rank_flops(llm, 7, shape) == 2 * 7 * (shape.image_values(llm) + outputs)


def test_grouped_queries_have_smaller_keys_and_cache() -> None:
    full = LLMShape(64, 2, 128, 100, heads=8, kv_heads=8, head_dim=8)
    grouped = LLMShape(64, 2, 128, 100, heads=8, kv_heads=2, head_dim=8)
    assert full.layer_weights == 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert full.layer_weights - grouped.layer_weights == 2 * 2 * 64 * (64 - 16)
    assert Cost("pooling", 145, 64, full).cache_bytes() == 2 * 2 * 64 * 209 * 2
    assert Cost("pooling", 145, 64, grouped).cache_bytes() * 4 == Cost("pooling", 145, 64, full).cache_bytes()
    assert llm_forward_flops(full, 10, logits=1) == 20 * full.layer_weights + 2 * 100 * 64 * 2 + 2 * 64 * 100


def test_token_counts_of_the_ablation_table() -> None:
    """What each connector gives when asked for the paper's budgets."""
    for name in ("acformer", "perceiver", "pr", "random_pr", "top_p", "visionzip"):
        assert [count_tokens(name, tokens) for tokens in TOKENS] == list(TOKENS)
    assert [count_tokens("c_abstractor", tokens) for tokens in TOKENS] == [64, 144, 256]
    assert [count_tokens("evit", tokens) for tokens in TOKENS] == [66, 146, 258]
    assert [count_tokens("pooling", tokens) for tokens in TOKENS[:2]] == [65, 145]
    assert count_tokens("pixel_shuffle", 145) == 144
    assert count_tokens("linear", 145) == count_tokens("mlp2x_gelu", 9) == 576
    with pytest.raises(RequestError, match=r"257 does not come from pooling .* are 2, 5, .*145, 577"):
        count_tokens("pooling_pr", 257)
    with pytest.raises(RequestError, match=r"for this tower are 17, 33, \.\.\., 577"):
        count_tokens("acformer", 16)


def test_every_connector_has_a_cost() -> None:
    llm, mlp = LLMS["7b"], Cost("linear", 576, 64, LLMS["7b"])
    assert mlp.connector_flops == 2 * 576 * 1024 * 4096
    own = {name for name, entry in CONNECTORS.items() if fields(entry.config_class)}
    assert own == set(FLOPS)
    for name in FLOPS:
        cost = Cost(name, count_tokens(name, 145), 64, llm)
        assert 1e9 < cost.connector_flops < 0.02 * cost.stage1_step_flops(recompute=True)
    with pytest.raises(RequestError, match=r"'nope' is not known; known are linear, mlp<k>x_gelu, acformer.*pr"):
        connector_flops("nope", 1, Shapes(llm))
    with pytest.raises(RequestError, match=r"Unknown projector type: nope \(known: linear, mlp<k>x_gelu, identity"):
        count_tokens("nope", 1)


def test_any_llama_like_model(tmp_path: Path) -> None:
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "vocab_size": 100,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = LLMShape(64, 2, 128, 100, heads=8, kv_heads=2, head_dim=8)
    assert read_llm(str(tmp_path)) == read_llm(str(tmp_path / "config.json")) == shape
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    with pytest.raises(RequestError, match=r"has no 'num_attention_heads'"):
        read_llm(str(tmp_path))
    (tmp_path / "config.json").write_text("no json")
    with pytest.raises(RequestError, match="is not JSON"):
        read_llm(str(tmp_path))
    with pytest.raises(RequestError, match="Unknown language model '70b': use 7b, 13b"):
        read_llm("70b")


def test_program() -> None:
    command = [sys.executable, "-m", "llava.tools.cost", "--llm", "7b", "--connector", "acformer"]
    result = subprocess.run([*command, "--tokens", "145"], capture_output=True, text=True, check=True)
    rows = {line[:40].strip(): line[40:].split() for line in result.stdout.splitlines()}
    assert rows["visual + text tokens"] == ["145", "+", "64", "576", "+", "64"]
    assert rows["prefill in all, GFLOP"][-1] == "2.82x"
    assert rows["stage-1 step, GFLOP"][-1] == "2.93x"
    assert rows["with recomputation, GFLOP"][-1] == "2.98x"
    assert rows["key/value cache (2 bytes a value), MiB"] == ["104.5", "320.0", "3.06x"]
    wrong = subprocess.run([*command[:-1], "nope"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "error: Unknown projector type: nope (known: " in wrong.stderr
