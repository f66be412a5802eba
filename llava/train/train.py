"""Training: parse, build, train, save.

deepspeed llava/train/train_mem.py --model_name_or_path ... --mm_projector_type acformer --mm_num_visual_tokens 145 ...
"""

import atexit
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # run by path

import torch
import transformers

from llava import conversation as conversation_lib
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from llava.train.checkpoint import (
    checkpoint_to_resume,
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    maybe_zero_3,
    safe_save_model_for_hf_trainer,
)
from llava.train.compilation import compile_vision
from llava.train.data import (
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
)
from llava.train.deepspeed_config import warn_of_overruled_flags
from llava.train.dtypes import settle_kbit_dtypes, settle_saved_dtype, settle_trained_dtype
from llava.train.launch import prepare_launch
from llava.train.lengths import measure_samples
from llava.train.liger import apply_liger_kernels
from llava.train.llava_trainer import LLaVATrainer
from llava.train.model_setup import (
    find_all_linear_names,
    freeze_and_adapt,
    load_language_model,
    prepare_tokenizer,
    smart_tokenizer_and_embedding_resize,
)
from llava.train.packing import PackedDataset
from llava.train.planning import BatchLayout
from llava.train.preprocess import (
    preprocess,
    preprocess_llama_2,
    preprocess_mpt,
    preprocess_multimodal,
    preprocess_plain,
    preprocess_v1,
)
from llava.train.vision_setup import add_vision, batch_layout

__all__ = [
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "LazySupervisedDataset",
    "ModelArguments",
    "TrainingArguments",
    "find_all_linear_names",
    "get_mm_adapter_state_maybe_zero_3",
    "get_peft_state_maybe_zero_3",
    "get_peft_state_non_lora_maybe_zero_3",
    "make_supervised_data_module",
    "maybe_zero_3",
    "preprocess",
    "preprocess_llama_2",
    "preprocess_mpt",
    "preprocess_multimodal",
    "preprocess_plain",
    "preprocess_v1",
    "rank0_print",
    "safe_save_model_for_hf_trainer",
    "smart_tokenizer_and_embedding_resize",
    "train",
]

logger = logging.getLogger(__name__)


def is_first_of_node() -> bool:
    """Whether this process speaks for its node."""
    return int(os.environ.get("LOCAL_RANK", -1)) in (-1, 0)


def rank0_print(*args: object) -> None:
    """Print on the first process only."""
    if is_first_of_node():
        print(*args)


def train(attn_implementation: str | None = None) -> None:
    """Run the training that `sys.argv` describes.

    A run that finds a complete `checkpoint-*` in its output folder resumes from the newest one.
    """
    prepare_launch(sys.argv[1:])
    logging.basicConfig(level=logging.INFO if is_first_of_node() else logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    model_args, data_args, training_args = parse_arguments()
    warn_of_overruled_flags(training_args)
    model = load_language_model(model_args, training_args, attn_implementation)
    # LoRA and the connector are initialised before the Trainer seeds; after loading, which may draw numbers or not.
    transformers.set_seed(training_args.seed)
    model = freeze_and_adapt(model, model_args, training_args)
    tokenizer, template = prepare_tokenizer(model, model_args, training_args)
    conversation_lib.default_conversation = template  # upstream's users read it there
    data_args.conv = template
    training_args.tune_mm_mlp_adapter = False
    if model_args.vision_tower is not None:
        add_vision(model, tokenizer, model_args, data_args, training_args)
        data_args.layout = batch_layout(model, data_args, training_args)
    elif training_args.chunked_loss:
        raise ValueError("--packing and --chunked_loss need a model with a vision tower (--vision_tower)")
    if training_args.bits in (4, 8):
        settle_kbit_dtypes(model, training_args)
    settle_trained_dtype(model, training_args)
    apply_liger_kernels(model, training_args)
    if model_args.torch_compile_vision:
        compile_vision(model)

    data_module = make_supervised_data_module(tokenizer=tokenizer, data_args=data_args)
    layout = getattr(data_args, "layout", None)
    if layout is not None and (layout.packed or layout.elastic_budgets):
        data_module["train_dataset"] = pack(data_module["train_dataset"], layout, training_args)
    trainer = LLaVATrainer(model=model, processing_class=tokenizer, args=training_args, **data_module)
    checkpoint = checkpoint_to_resume(training_args.output_dir)
    if checkpoint is not None:
        rank0_print(f"Resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()

    model.config.use_cache = True
    settle_saved_dtype(model, training_args)
    if training_args.lora_enable:
        trainer.save_model(training_args.output_dir)
    else:
        safe_save_model_for_hf_trainer(trainer=trainer, output_dir=training_args.output_dir)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1:
        torch.distributed.destroy_process_group()


def pack(dataset: LazySupervisedDataset, layout: BatchLayout, args: TrainingArguments) -> PackedDataset:
    """Serve the samples by packs, for which they are measured, once per machine."""
    if not layout.packed:
        return PackedDataset(dataset, layout)
    with args.main_process_first(desc="measuring samples"):
        measured = measure_samples(dataset, args.dataloader_num_workers, args.local_process_index == 0)
    return PackedDataset(dataset, layout, measured)


def leave() -> None:
    """End this process after training; with several processes, when all have finished.

    The threads of torch's gloo backend may still run while the interpreter shuts down. The process then aborts, and the
    launcher reports a failure although everything is written. So a worker runs its exit handlers and exits at once.
    """
    rank, address, port = (os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    # DeepSpeed on CPUs leaves 66 MiB of shared memory behind.
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    train()
    leave()
