"""Helpers of both pre-trainings: learning-rate schedule, progress line, resumable checkpoints."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAVE_EVERY = 200


def cosine_lr(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak learning rate: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Progress:
    """Writes `name step/steps loss s/step` to standard error every `every` steps."""

    def __init__(self, name: str, steps: int, every: int = 50) -> None:
        self.name, self.steps, self.every = name, steps, every
        self.started, self.first = time.time(), None
        self.losses: list[float] = []

    def report(self, step: int, loss: float) -> None:
        if self.first is None:
            self.first = step - 1
        self.losses.append(loss)
        if step % self.every == 0 or step == self.steps:
            pace = (time.time() - self.started) / (step - self.first)
            mean = sum(self.losses) / len(self.losses)
            sys.stderr.write(f"{self.name}  {step}/{self.steps}  loss {mean:.4f}  {pace:.2f} s/step\n")
            sys.stderr.flush()
            self.losses.clear()


class Checkpointer:
    """Keeps model and optimizer in one file. A file made with another recipe is ignored."""

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Any) -> None:
        self.path, self.model, self.optimizer, self.recipe = path, model, optimizer, asdict(recipe)

    def load(self) -> int:
        """Restore the last checkpoint; returns the number of steps done."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, weights_only=True)
        if saved["recipe"] != self.recipe:
            return 0
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        return saved["step"]

    def save_sometimes(self, step: int, last: bool) -> None:
        """Save at every `SAVE_EVERY`-th step and at the last one."""
        if step % SAVE_EVERY and not last:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        state = {"step": step, "recipe": self.recipe}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, temporary)
        os.replace(temporary, self.path)
