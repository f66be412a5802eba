"""What happens around the steps of a run: checks before the first one, and no needless checkpoint at the last one."""

from typing import Any

from transformers.trainer_callback import TrainerCallback

from llava.train.checkpoint import rehearse_save
from llava.train.disk_space import check_disk_space


class CheckSaving(TrainerCallback):
    """Before the first step: can everything be saved, and is there room for it?

    transformers has aligned the configurations with the tokenizer by then, and knows the number of steps.
    """

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        if args.should_save:
            rehearse_save(model, processing_class, args.output_dir)
            check_disk_space(model, args, state)


class NoExtraCheckpoint(TrainerCallback):
    """Checkpoints at multiples of `save_steps` only.

    transformers 5 adds one after the last step. It holds what the final save writes right after it and the optimizer's
    state, six times as much, which a finished run does not need.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        is_due = state.save_steps > 0 and state.global_step % state.save_steps == 0
        if args.save_strategy == "steps" and not is_due and not args.load_best_model_at_end:
            control.should_save = False
