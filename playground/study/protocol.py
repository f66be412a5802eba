"""The protocol of the comparisons: settings that all runs share, runs, evaluations, and their result files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """The settings that all runs share. Results record them, and a result of another protocol is not reused.

    The learning rates, the batches and the resampler's size are those of `scripts/quickstart.sh`: small models. There
    are far fewer steps than there, where good connectors end near 100 % and could not be told apart.
    """

    tokens: int = 17
    stage1_steps: int = 75
    stage2_steps: int = 200
    pictures: int = 4000
    questions: int = 100
    stage1_batch: int = 32
    stage2_batch: int = 16
    stage1_learning_rate: float = 2e-3
    stage2_learning_rate: float = 1e-3
    turns: int = 8
    data_seed: int = 0
    resampler_depth: int = 2
    resampler_heads: int = 4
    resampler_dim_head: int = 32


# Sizes that only single connectors have; results record them too.
GENERATOR = {
    "vlora_dim": 128,
    "vlora_depth": 2,
    "vlora_heads": 4,
    "vlora_rank": 8,
    "vlora_type": "qkvom",
    "weights_sep": False,
}
OWN_SETTINGS: dict[str, dict[str, Any]] = {"vlora": GENERATOR, "acformer_vlora": GENERATOR}


@dataclass(frozen=True)
class Folders:
    """Paths: the playground's data, and this comparison's checkpoints, logs and results."""

    data: Path
    runs: Path


@dataclass(frozen=True)
class Run:
    """A training from the base models to a finished checkpoint.

    Attributes:
        tokens: number of visual tokens; None: the protocol's.
        budgets: numbers of visual tokens, one of which is drawn for every step; empty: every step has the same.
        step_factor: multiplies the protocol's steps.
    """

    connector: str
    seed: int
    tokens: int | None = None
    budgets: tuple[int, ...] = ()
    step_factor: int = 1

    @property
    def name(self) -> str:
        parts = [self.connector]
        if self.tokens is not None:
            parts.append(f"{self.tokens}tokens")
        if self.budgets:
            parts.append("elastic" + "_".join(map(str, self.budgets)))
        if self.step_factor != 1:
            parts.append(f"{self.step_factor}x")
        return "-".join([*parts, f"seed{self.seed}"])

    @property
    def own_settings(self) -> dict[str, Any]:
        """Flags of the training that other runs do not have, or have with other values."""
        own = dict(OWN_SETTINGS.get(self.connector, {}))
        if self.tokens is not None:
            own["mm_num_visual_tokens"] = self.tokens
        if self.budgets:
            own["mm_elastic_budgets"] = ",".join(map(str, self.budgets))
        return own

    def settings(self, protocol: Protocol) -> dict[str, Any]:
        """Everything that determines the training and the questions, as it is read back from JSON."""
        steps = {name: getattr(protocol, name) * self.step_factor for name in ("stage1_steps", "stage2_steps")}
        return {"connector": self.connector, "seed": self.seed} | asdict(protocol) | steps | self.own_settings

    def stage1(self, folders: Folders) -> Path:
        return folders.runs / f"llava-{self.name}-pretrain"

    def stage2(self, folders: Folders) -> Path:
        return folders.runs / f"llava-{self.name}"


@dataclass(frozen=True)
class Evaluation:
    """The held-out questions, put to a finished run.

    Attributes:
        table: the part of the report: `trained`, `elastic`, `training_free` or `blank`.
        connector, tokens: override the checkpoint's at load; None keeps them.
    """

    run: Run
    table: str = "trained"
    connector: str | None = None
    tokens: int | None = None

    @property
    def name(self) -> str:
        changes = [str(change) for change in (self.connector, self.tokens) if change is not None]
        return "-".join([self.run.name, *([] if self.table == "trained" else [self.table]), *changes])

    def overrides(self) -> dict[str, Any]:
        """As keyword arguments of `load_pretrained_model`, which are flags of the evaluation too."""
        given = {"mm_projector_type": self.connector, "mm_num_visual_tokens": self.tokens}
        return {key: value for key, value in given.items() if value is not None}

    def result_file(self, folders: Folders) -> Path:
        return folders.runs / "results" / f"{self.name}.json"

    def settings(self, protocol: Protocol) -> dict[str, Any]:
        """Everything that determines the result."""
        asked = {"table": self.table, "asked_connector": self.connector, "asked_tokens": self.tokens}
        return self.run.settings(protocol) | asked


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if the file does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def finished_result(evaluation: Evaluation, protocol: Protocol, folders: Folders) -> dict[str, Any] | None:
    """The stored result, or None if there is none with these settings."""
    result = read_json(evaluation.result_file(folders))
    return result if result and result["settings"] == evaluation.settings(protocol) else None


def changed_settings(evaluation: Evaluation, protocol: Protocol, folders: Folders) -> list[str]:
    """The settings in which a stored result differs, as `stage2_steps 250 -> 300`; empty without a stored result."""
    old = (read_json(evaluation.result_file(folders)) or {}).get("settings", {})
    new = evaluation.settings(protocol)
    return [f"{key} {old[key]} -> {new.get(key)}" for key in old if old[key] != new.get(key)]
