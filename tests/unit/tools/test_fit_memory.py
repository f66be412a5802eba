"""The memory model against real steps of small models, and against numbers measured at full size."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

from llava.tools.connector_costs import Shapes
from llava.tools.cost import LLMS, Cost
from llava.tools.fitting.arithmetic import Rows, step_flops
from llava.tools.fitting.decoder import DecoderMemory, loss_bytes
from llava.tools.fitting.states import Engine, Parameters, ZeroConfig
from llava.tools.fitting.storages import LiveStorages
from llava.tools.flops import GENERATOR, GeneratorShape
from tests.conftest import REPOSITORY

CASES = [
    ("mlp2x_gelu", "1", False),
    ("mlp2x_gelu", "2", True),
    ("acformer", "1", True),
    ("acformer", "2", False),
    ("acformer", "lora", False),
    ("vlora", "1", False),
    ("vlora", "2", True),
    ("acformer_vlora", "1", True),
]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """scripts/bench/fit_memory.py, which imports its neighbours."""
    sys.path.insert(0, str(REPOSITORY / "scripts" / "bench"))
    try:
        return importlib.import_module("fit_memory")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize(("connector", "stage", "recomputes"), CASES)
def test_computed_peak_is_the_measured_one(bench: ModuleType, connector: str, stage: str, recomputes: bool) -> None:
    """A whole step: within 15 %, also for what is left without weights, gradients and optimizer states."""
    row = bench.compare(bench.Case(connector, stage, recomputes, text=48))
    assert abs(row["error"]) < 0.15, row
    assert abs(row["activations_error"]) < 0.15, row


@pytest.mark.parametrize(("connector", "stage"), [("acformer", "2"), ("vlora", "1")])
def test_packs_with_their_loss_in_chunks(bench: ModuleType, connector: str, stage: str) -> None:
    row = bench.compare(bench.Case(connector, stage, True, text=48, packs=True))
    assert abs(row["activations_error"]) < 0.15, row


def test_half_precision_keeps_its_float32_norms(bench: ModuleType) -> None:
    row = bench.compare(bench.Case("acformer", "2", False, dtype=torch.bfloat16, text=48))
    assert abs(row["activations_error"]) < 0.15, row


@pytest.mark.parametrize(("size", "measured_mib"), [("7b", 4.04), ("13b", 6.32)])
def test_frozen_decoder_at_full_size(size: str, measured_mib: float) -> None:
    """MiB per position over all layers in bf16, measured with real layers of this width."""
    llm = LLMS[size]
    decoder = DecoderMemory(llm, 2, trains=False, recomputes=False)
    assert llm.layers * decoder.layer_bytes() / 2**20 == pytest.approx(measured_mib, rel=0.01)


def test_perceptual_weights_add_their_inputs() -> None:
    """Of a frozen layer two hidden states and five narrow products; of one that trains the narrow products only."""
    llm, rank = LLMS["7b"], GENERATOR.rank
    frozen, trained = (DecoderMemory(llm, 2, t, False, generator=GENERATOR).weighted_layer_bytes() for t in (0, 1))
    assert (frozen, trained) == (2 * (2 * 4096 + 5 * rank), 2 * 5 * rank)
    only_q = DecoderMemory(llm, 2, False, False, generator=GeneratorShape(letters="q"))
    assert only_q.weighted_layer_bytes() == 2 * (4096 + rank)


def test_loss_of_all_logits() -> None:
    assert loss_bytes(10, 100, value=2) == (10 * 1000, 12 * 1000)
    assert loss_bytes(10, 100, value=4) == (8 * 1000, 12 * 1000)


def test_storages_are_counted_once_and_until_freed() -> None:
    with LiveStorages() as storages:
        x = torch.zeros(100)
        view = x[:50]
        assert storages.live == 400
        y = x + 1
        del x
        assert (storages.live, storages.peak) == (800, 800)
        torch.zeros(100, device="meta")
        del view, y
        assert (storages.live, storages.peak) == (0, 800)


def test_states_by_zero_stage() -> None:
    """Bytes per parameter that trains, on 8 devices: 16 in all, of which each stage keeps less."""
    p = Parameters(trained=8_000, frozen=800, frozen_bytes=1_600, largest=1_000)

    def states(**zero: object) -> tuple[int, ...]:
        config = ZeroConfig(bucket=100, **zero) if zero else None
        s = Engine(8, True, config, "adamw_torch_fused", hidden_size=10).states(p)
        return s.weights, s.gradients, s.optimizer, s.step, s.host

    assert states(stage=0) == (17_600, 16_000, 96_000, 32_000, 0)
    assert states(stage=1) == (17_600, 16_000, 12_000, 6_000, 0)
    assert states(stage=2) == (17_600, 2_000, 12_000, 6_000, 0)
    assert states(stage=3) == (2_200, 2_000, 12_000, 6_000, 0)
    assert states(stage=3, sub_group=500) == (2_200, 2_000, 12_000, 3_000, 0)
    assert states(stage=2, offloads_optimizer=True) == (17_600, 0, 0, 0, 14_000)
    assert states(stage=3, offloads_optimizer=True, offloads_weights=True) == (0, 0, 0, 0, 16_200)
    assert states() == (33_600, 32_000, 64_000, 0, 0)  # float32 without DeepSpeed
    live = Engine(8, True, ZeroConfig(stage=3, bucket=100, live_parameters=500), "adamw_torch", 10).states(p)
    assert live.buffers == 2 * 2 * 100 + 2 * 1_000 + 2 * 500


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(("connector", "tokens"), [("acformer", 145), ("vlora", 0)])
def test_flops_are_those_of_the_cost_program(connector: str, tokens: int, recomputes: bool) -> None:
    """A stage-1 step of three samples is three times what `python -m llava.tools.cost` says."""
    llm = LLMS["7b"]
    cost = Cost(connector, tokens, 64, llm)
    decoder = DecoderMemory(llm, 2, False, recomputes, generator=GENERATOR if connector == "vlora" else None)
    rows = Rows(3, cost.positions, 1, cost.positions)
    flops = step_flops(connector, Shapes(llm), decoder, rows, tokens=tokens, blocks=23, tower_trains=False)
    assert flops.total == 3 * cost.stage1_step_flops(recomputes)
