"""The progress bar of training: loss, learning rate, samples/s, LLM tokens/s and the time left."""

from typing import Any

from transformers.trainer_callback import ProgressCallback


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
        shown["LLM tok/s"] = f"{logs.get('llm_tokens_per_second', 0):g}"
        self.training_bar.set_postfix(shown)
