"""Train the tiny CLIP vision tower from the world's ground truth.

Two linear read-outs on the features LLaVA takes (`hidden_states[-2]`), thrown away afterwards:
every patch tells colour, shape and place of what covers it (or the word written on it), and the CLS token tells
what is at each place and which word there is. The pooled output gets the CLS targets too, so that the last block is
trained as well. Only scenes of the training split are shown.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from ..world.render import IMAGE_SIZE, Layout, draw_with_layout
from ..world.scene import COLORS, PLACES, SHAPES, WORDS, Scene, sample_split_scene
from .loop import Checkpointer, Progress, cosine_lr

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PATCH = 12
GRID = IMAGE_SIZE // PATCH


@dataclass(frozen=True)
class VisionRecipe:
    """Hyper-parameters of vision pre-training."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 1500
    batch: int = 64
    lr: float = 1.5e-3
    warmup: int = 50
    seed: int = 0


def to_pixels(images: list[np.ndarray]) -> Tensor:
    """uint8 images [B][96, 96, 3] -> what CLIPImageProcessor gives, [B, 3, 96, 96]."""
    pixels = torch.from_numpy(np.stack(images)).float() / 255
    pixels = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    return pixels.permute(0, 3, 1, 2).contiguous()


def _cover(box: tuple[float, float, float, float]) -> np.ndarray:
    """Share of each patch that lies in the box, [GRID, GRID]."""
    edges = np.arange(GRID) * PATCH
    x = np.clip(np.minimum(edges + PATCH, box[2]) - np.maximum(edges, box[0]), 0, None)
    y = np.clip(np.minimum(edges + PATCH, box[3]) - np.maximum(edges, box[1]), 0, None)
    return np.outer(y, x) / PATCH**2


def targets(scene: Scene, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Class targets: per patch [P, 4] (colour, shape, place, word) and for CLS [2 * places + 1]; 0 means nothing."""
    patch = np.zeros((GRID, GRID, 4), dtype=np.int64)
    best = np.full((GRID, GRID), 0.2)
    whole = np.zeros(2 * len(PLACES) + 1, dtype=np.int64)
    for item, box in zip(scene.items, layout.items, strict=True):
        cover = _cover(box)
        labels = (1 + COLORS.index(item.color), 1 + SHAPES.index(item.shape), 1 + PLACES.index(item.place))
        patch[cover > best, :3] = labels
        best = np.maximum(best, cover)
        whole[2 * (labels[2] - 1)], whole[2 * (labels[2] - 1) + 1] = labels[:2]
    if scene.word is not None and layout.word is not None:
        whole[-1] = 1 + WORDS.index(scene.word)
        patch[_cover(layout.word) > 0.2, 3] = whole[-1]
    return patch.reshape(-1, 4), whole


PATCH_CLASSES = (len(COLORS) + 1, len(SHAPES) + 1, len(PLACES) + 1, len(WORDS) + 1)
WHOLE_CLASSES = (len(COLORS) + 1, len(SHAPES) + 1) * len(PLACES) + (len(WORDS) + 1,)


class ReadOut(nn.Module):
    """LayerNorm and one linear map to several groups of classes."""

    def __init__(self, width: int, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(classes))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.linear(self.norm(features)).split(self.classes, dim=-1)


def _loss(logits: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Mean cross entropy over all groups of classes; target [..., groups]."""
    losses = [nn.functional.cross_entropy(x.flatten(0, -2), target[..., i].flatten()) for i, x in enumerate(logits)]
    return torch.stack(losses).mean()


def make_batch(rng: random.Random, size: int, held_out: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [B, 3, 96, 96], patch targets [B, P, 4] and CLS targets [B, 2 * places + 1] of fresh scenes."""
    images, patches, wholes = [], [], []
    for _ in range(size):
        scene = sample_split_scene(rng, held_out)
        image, layout = draw_with_layout(scene, rng)
        patch, whole = targets(scene, layout)
        images.append(np.asarray(image))
        patches.append(patch)
        wholes.append(whole)
    return to_pixels(images), torch.from_numpy(np.stack(patches)), torch.from_numpy(np.stack(wholes))


class VisionTask(nn.Module):
    """The tower and its three read-outs."""

    def __init__(self, recipe: VisionRecipe) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=recipe.width,
            intermediate_size=4 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            projection_dim=recipe.width,
        )
        self.tower = CLIPVisionModel(config)
        self.patch = ReadOut(recipe.width, PATCH_CLASSES)
        self.cls = ReadOut(recipe.width, WHOLE_CLASSES)
        self.pooled = ReadOut(recipe.width, WHOLE_CLASSES)

    def forward(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        out = self.tower(pixels, output_hidden_states=True)
        hidden = out.hidden_states[-2]  # [B, 1 + P, D]
        return self.patch(hidden[:, 1:]), self.cls(hidden[:, 0]), self.pooled(out.pooler_output)

    def loss(self, pixels: Tensor, patch: Tensor, whole: Tensor) -> Tensor:
        patch_logits, cls_logits, pooled_logits = self(pixels)
        return _loss(patch_logits, patch) + _loss(cls_logits, whole) + 0.3 * _loss(pooled_logits, whole)


@torch.no_grad()
def score(task: VisionTask, count: int = 512, seed: int = 10**6) -> dict[str, float]:
    """Held-out accuracies: of covered patches, of the CLS token per group of classes, and of whole scenes from CLS."""
    task.eval()
    pixels, patch, whole = make_batch(random.Random(seed), count, held_out=True)
    patch_logits, cls_logits, pooled_logits = task(pixels)
    names = ("color", "shape", "place", "word")
    result = {}
    for i, name in enumerate(names):
        covered = patch[..., i] > 0
        hit = patch_logits[i].argmax(-1) == patch[..., i]
        result[f"patch_{name}"] = hit[covered].float().mean().item()
    for name, logits in (("cls", cls_logits), ("pooled", pooled_logits)):
        hit = torch.stack([x.argmax(-1) == whole[:, i] for i, x in enumerate(logits)], dim=1)
        result[f"{name}_word"] = hit[:, -1].float().mean().item()
        result[f"{name}_items"] = hit[:, :-1].all(1).float().mean().item()
    task.train()
    return {k: round(v, 4) for k, v in result.items()}


def train_vision(recipe: VisionRecipe, work_dir: Path) -> VisionTask:
    """Train from scratch, or resume from the last checkpoint in `work_dir`."""
    torch.manual_seed(recipe.seed)
    task = VisionTask(recipe)
    optimizer = torch.optim.AdamW(task.parameters(), lr=recipe.lr, weight_decay=0.01, betas=(0.9, 0.98))
    checkpointer = Checkpointer(work_dir / "vision.pt", task, optimizer, recipe)
    progress = Progress("tiny-clip", recipe.steps)
    for step in range(checkpointer.load(), recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * cosine_lr(step, recipe.steps, recipe.warmup)
        batch = make_batch(random.Random(f"{recipe.seed} vision {step}"), recipe.batch, held_out=False)
        loss = task.loss(*batch)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"vision pre-training diverged at step {step}: lower VisionRecipe.lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        checkpointer.save_sometimes(step + 1, last=step + 1 == recipe.steps)
        progress.report(step + 1, loss.item())
    return task
