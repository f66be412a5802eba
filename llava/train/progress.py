"""The figures of training: loss, learning rate, samples/s, LLM tokens/s and the time left."""

import time
from typing import Any

from transformers.trainer_callback import ProgressCallback

from llava.model.sequence_plan import SequencePlan


class Throughput:
    """What one process has trained on since it was made."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._batches = self._samples = self._tokens = self._positions = 0

    def add(self, inputs: dict[str, Any]) -> None:
        """Count one micro-batch: by its plan, which the host knows; without one, its rows only."""
        plan: SequencePlan | None = inputs.get("plan")
        self._batches += 1
        if plan is None:
            self._samples += len(inputs["input_ids"])
            return
        self._samples += len(plan.lengths)
        self._tokens += plan.num_tokens
        self._positions += plan.num_positions

    def figures(self, world_size: int, accumulation_steps: int) -> dict[str, float]:
        """Over all processes, as if they were like this one: samples and positions without padding per second, samples
        per optimizer step. Of the positions: the share that is padding."""
        seconds = time.perf_counter() - self._since
        if not self._batches:
            return {}
        figures = {
            "samples_per_second": round(self._samples * world_size / seconds, 2),
            "samples_per_step": round(self._samples / self._batches * accumulation_steps * world_size, 1),
        }
        if self._positions:
            figures["llm_tokens_per_second"] = round(self._tokens * world_size / seconds, 1)
            figures["padding"] = round(1 - self._tokens / self._positions, 4)
        return figures


class TrainingProgress(ProgressCallback):
    """Shows the latest log values behind tqdm's own bar, which gives the time left."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" not in logs:
            self.training_bar.write(str({key: value for key, value in logs.items() if key != "total_flos"}))
            return
        shown = {"loss": f"{float(logs['loss']):.4f}"}
        if "learning_rate" in logs:
            shown["lr"] = f"{float(logs['learning_rate']):.2e}"
        shown["samples/s"] = f"{logs.get('samples_per_second', 0):g}"
        if "llm_tokens_per_second" in logs:
            shown["LLM tok/s"] = f"{logs['llm_tokens_per_second']:g}"
        self.training_bar.set_postfix(shown)
