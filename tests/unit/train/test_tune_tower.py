"""--tune_vision_tower and the learning rates of the model's parts."""

import json
from pathlib import Path

import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.train.llava_trainer import LLaVATrainer
from tests.support.training import run_training

FULL = ["--version", "v1", "--data_path", "train/data.json", "--save_strategy", "no", "--max_steps", "2"]
STAGE1 = ["--version", "plain", "--data_path", "train/data_plain.json", "--tune_mm_mlp_adapter", "True", *FULL[4:]]
LORA = [*FULL, "--lora_enable", "True", "--lora_r", "4", "--lora_dropout", "0"]
MODES = {"full": FULL, "stage1": STAGE1, "lora": LORA}
TUNE = ["--tune_vision_tower", "True"]
MLP = ["--mm_projector_type", "mlp2x_gelu"]
ACFORMER = ["--mm_projector_type", "acformer", "--mm_num_visual_tokens", "9", "--mm_resampler_depth", "1"]
VLORA = ["--mm_projector_type", "vlora", "--vlora_dim", "32", "--vlora_depth", "1", "--vlora_heads", "2"]
VLORA += ["--vlora_rank", "4", "--vlora_type", "qkvom"]
CONNECTORS = {"mlp": MLP, "acformer": ACFORMER, "vlora": VLORA}
BASE = "assets/base-llama"


def original_tower() -> dict[str, torch.Tensor]:
    from types import SimpleNamespace

    tower = CLIPVisionTower("assets/towers/clip-a", SimpleNamespace(mm_vision_select_layer=-2))
    return dict(tower.named_parameters())


def tower_of(trainer: LLaVATrainer) -> dict[str, torch.Tensor]:
    return {n.split("vision_tower.", 1)[1]: p for n, p in trainer.model.named_parameters() if "vision_tower." in n}


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[1, 300, -200, 301]])
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, images=images).logits


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("mode", MODES)
def test_tower_trains_and_comes_back(mode: str, connector: str, tmp_path: Path, llava_vectors: Path) -> None:
    out = tmp_path / f"llava-{mode}"
    trainer = run_training(out, *MODES[mode], *CONNECTORS[connector], *TUNE)
    before, after = original_tower(), tower_of(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name, p in after.items() if p.requires_grad}
    assert moved and moved <= trained
    assert any("embeddings.patch_embedding" in name for name in moved)
    assert not any("post_layernorm" in name for name in trained)  # behind the select layer
    assert json.loads((out / "config.json").read_text())["tune_vision_tower"] is True

    base = None if mode == "full" else BASE
    _, model, _, _ = load_pretrained_model(str(out), base, out.name, device="cpu", dtype=torch.float32)
    rounding = 1e-4 if mode == "lora" else 1e-5  # opening merges the adapters
    torch.testing.assert_close(logits(model), logits(trainer.model), rtol=0, atol=rounding)
    for name, parameter in model.get_vision_tower().named_parameters():
        assert torch.equal(parameter, after[name]), name


def test_a_frozen_tower_stays_frozen(tmp_path: Path, llava_vectors: Path) -> None:
    trainer = run_training(tmp_path, *FULL, *MLP)
    before, after = original_tower(), tower_of(trainer)
    assert all(torch.equal(before[name], after[name]) and not after[name].requires_grad for name in before)
    with torch.enable_grad():
        assert not trainer.model.get_vision_tower()(torch.randn(1, 3, 56, 56)).requires_grad
    assert trainer.model.config.tune_vision_tower is False


def test_a_tower_tuned_in_stage_1_stays_with_the_model(tmp_path: Path, llava_vectors: Path) -> None:
    """Later stages leave the flag out: they take the tower of stage 1, keep it still, and save it."""
    stage1 = run_training(tmp_path / "llava-1", *STAGE1, *MLP, *TUNE)
    pretrained = ["--pretrain_mm_mlp_adapter", str(tmp_path / "llava-1/mm_projector.bin")]
    for mode, flags in (("full", FULL), ("lora", LORA)):
        out = tmp_path / f"llava-{mode}"
        trainer = run_training(out, *flags, *MLP, *pretrained)
        _, model, _, _ = load_pretrained_model(
            str(out), None if mode == "full" else BASE, out.name, device="cpu", dtype=torch.float32
        )
        tuned = tower_of(stage1)
        for towers in (tower_of(trainer), dict(model.get_vision_tower().named_parameters())):
            assert all(torch.equal(towers[name], tuned[name]) for name in tuned)
        torch.testing.assert_close(logits(model), logits(trainer.model), rtol=0, atol=1e-4)
    # And from the full checkpoint, as a base.
    again = run_training(tmp_path / "llava-2", *LORA, "--model_name_or_path", str(tmp_path / "llava-full"), *MLP)
    assert all(torch.equal(tower_of(again)[name], tuned[name]) for name in tuned)
    _, model, _, _ = load_pretrained_model(
        str(tmp_path / "llava-2"), str(tmp_path / "llava-full"), "llava-lora", device="cpu", dtype=torch.float32
    )
    torch.testing.assert_close(logits(model), logits(again.model), rtol=0, atol=1e-4)


def test_another_tower_is_refused(tmp_path: Path, llava_vectors: Path) -> None:
    run_training(tmp_path / "a", *STAGE1, *MLP, *TUNE)
    path = tmp_path / "a/mm_projector.bin"
    state = torch.load(path, weights_only=True)
    key = next(key for key in state if "position_embedding" in key)
    torch.save(state | {key: torch.zeros(3, 64)}, path)
    with pytest.raises(ValueError, match=r"holds another vision tower than .*position_embedding.*--vision_tower"):
        run_training(tmp_path / "b", *FULL, *MLP, "--pretrain_mm_mlp_adapter", str(path))


def test_rates_of_the_parts(tmp_path: Path, llava_vectors: Path) -> None:
    rates = ["--mm_projector_lr", "2e-4", "--B_matrix_lr", "3e-4", "--vision_tower_lr", "4e-5", "--weight_decay", "0.1"]
    trainer = run_training(tmp_path / "a", *FULL, *VLORA, *TUNE, *rates, "--learning_rate", "1e-5", "--max_steps", "1")
    rest, rest_plain, made, made_plain, learned, learned_plain, tower, tower_plain = parts(trainer)
    assert [g[0] for g in (rest, made, learned, tower)] == [1e-5, 2e-4, 3e-4, 4e-5]
    assert [g[0] for g in (rest_plain, made_plain, learned_plain, tower_plain)] == [1e-5, 2e-4, 3e-4, 4e-5]
    assert learned[1:] == (0.1, {"model.mm_projector.Bs"}) and learned_plain[2] == set()
    assert all("vision_tower" in name for name in tower[2] | tower_plain[2])
    assert {"model.mm_projector.pos_embed", "model.mm_projector.gen.0.queries"} <= made[2]
    assert "model.mm_projector.gen.0.norm.weight" in made_plain[2]
    assert all(name.endswith("bias") or "norm" in name for name in made_plain[2])
    assert {group[1] for group in (rest, made, tower)} == {0.1}
    names = set().union(*(group[2] for group in parts(trainer)))
    assert names == {name for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_rates_fall_back_and_empty_parts_are_left_out(tmp_path: Path, llava_vectors: Path) -> None:
    trainer = run_training(
        tmp_path / "a", *STAGE1, *VLORA, "--B_matrix_lr", "3e-4", "--learning_rate", "1e-5", "--max_steps", "1"
    )
    assert [group[0] for group in parts(trainer)] == [1e-5, 1e-5, 3e-4, 3e-4]
    trainer = run_training(tmp_path / "b", *FULL, *VLORA, "--learning_rate", "1e-5", "--max_steps", "1")
    assert len(parts(trainer)) == 2  # no rate of its own: the two global groups


def parts(trainer: LLaVATrainer) -> list[tuple[float, float, set[str]]]:
    """Start rate, weight decay and parameter names of the optimizer's groups."""
    by_id = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    return [(g["initial_lr"], g["weight_decay"], {by_id[id(p)] for p in g["params"]}) for g in groups]
