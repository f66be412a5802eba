"""Build a model that is ready to train from the arguments."""

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from llava.conversation import conv_templates
from llava.extras import require_extra
from llava.model.checkpoint_kind import checkpoint_kind, read_config_dict
from llava.model.connector_choice import choose_for_training
from llava.model.families import classes_of, read_config
from llava.model.loading_report import quiet_loading_report
from llava.model.multimodal_projector.registry import find_connector
from llava.model.planned_attention import PLANNED_FLASH, PLANNED_SDPA
from llava.model.quantization import NEVER_QUANTISED, guard_cpu_packing
from llava.model.vision_state import load_connector_state
from llava.model.vision_tokenizer import grow_embeddings
from llava.tokenization import load_tokenizer
from llava.train.arguments import ModelArguments, TrainingArguments
from llava.train.dtypes import compute_dtype

logger = logging.getLogger(__name__)

NEVER_ADAPTED = ("mm_projector", "vision_tower", "vision_resampler")
PAD_TOKEN = "[PAD]"
DEFAULT_TEMPLATE = "vicuna_v1"


def load_language_model(
    model_args: ModelArguments, training_args: TrainingArguments, attn_implementation: str | None
) -> PreTrainedModel:
    """Load the base model: Llama or Mistral with images, or a plain language model without a vision tower.

    Raises:
        NotImplementedError: a base with a vision tower that is neither Llama nor Mistral.
    """
    options: dict[str, Any] = {
        "cache_dir": training_args.cache_dir,
        # float32 also under --fp16, which is mixed precision.
        "dtype": torch.bfloat16 if training_args.bf16 else torch.float32,
    }
    path = model_args.model_name_or_path
    projector_type = own_projector_type(path) or model_args.mm_projector_type
    half = training_args.bf16 or training_args.fp16
    flash = attn_implementation == "flash_attention_2" and half  # it takes half precision only
    if flash and find_connector(projector_type).connector_class.space == "parameter":
        logger.info("The masked slot of %s is not supported by FlashAttention: using sdpa.", projector_type)
        flash = False
    if model_args.vision_tower is None:
        options["attn_implementation"] = "flash_attention_2" if flash else "sdpa"
    else:
        options["attn_implementation"] = PLANNED_FLASH if flash else PLANNED_SDPA
    if training_args.bits in (4, 8):
        options |= _quantisation(training_args)
    if model_args.vision_tower is None:
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    else:
        family = checkpoint_kind(path, None, path).family
        if family == "llama" and model_args.mm_projector_type == "vlora":
            family = "vlora"  # the published name of Llama with this connector
        model_class, config_class = classes_of(family, path)
        config = read_config(config_class, path)
        projector = choose_for_training(config, path, vars(model_args))
        with quiet_loading_report(bool(projector)):
            model = model_class.from_pretrained(path, config=config, **options)
        _forget_unused_prefixes(model)
        if projector:
            load_connector_state(model.get_model(), projector, path)
    model.config.use_cache = False
    settle_generation_config(model)
    return model


def settle_generation_config(model: PreTrainedModel) -> None:
    """Let sampling values, such as Vicuna's `temperature` and `top_p`, stand with `do_sample`.

    Without it transformers refuses to save the configuration once anything in it was changed, the pad token included.
    """
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True


def _forget_unused_prefixes(model: PreTrainedModel) -> None:
    """Keep the names of a tower in the checkpoint as they are.

    Under ZeRO-3 transformers remembers every prefix that it could have removed from the names while loading, removed or
    not, and would add all of them when it saves: `vision_model.vision_model` could not be opened again.
    """
    from transformers.core_model_loading import PrefixChange

    remembered = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [entry for entry in remembered if not isinstance(entry, PrefixChange)] or None


def own_projector_type(path: str) -> str | None:
    """The connector of a checkpoint that training starts from; None for a language model."""
    stored = read_config_dict(path, required=False)
    return stored.get("mm_projector_type") if stored.get("mm_vision_tower") else None


def _quantisation(args: TrainingArguments) -> dict[str, Any]:
    require_extra("bitsandbytes", "quant")
    return {
        "device_map": {"": args.device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=args.bits == 4,
            load_in_8bit=args.bits == 8,
            llm_int8_skip_modules=NEVER_QUANTISED,
            llm_int8_threshold=6.0,
            llm_int8_has_fp16_weight=False,
            bnb_4bit_compute_dtype=compute_dtype(args),
            bnb_4bit_use_double_quant=args.double_quant,
            bnb_4bit_quant_type=args.quant_type,
        ),
    }


def find_all_linear_names(model: torch.nn.Module) -> list[str]:
    """Last name components of the linear layers that LoRA adapts; for Llama the usual seven."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(part in name for part in NEVER_ADAPTED)
    }
    return sorted(names - {"lm_head"})


def freeze_and_adapt(model: PreTrainedModel, model_args: ModelArguments, args: TrainingArguments) -> PreTrainedModel:
    """--freeze_backbone, k-bit preparation, gradient checkpointing, LoRA; before the vision tower is there."""
    if model_args.freeze_backbone:
        model.model.requires_grad_(False)
    if args.bits in (4, 8):
        from peft import prepare_model_for_kbit_training

        guard_cpu_packing(model, will_train=True)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.lora_enable:
        from peft import LoraConfig, get_peft_model

        targets = find_all_linear_names(model)
        config = LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            target_modules=targets,
            exclude_modules=_spared_by_name(model, targets),
            lora_dropout=args.lora_dropout,
            bias=args.lora_bias,
            task_type="CAUSAL_LM",
        )
        if args.bits == 16 and (args.bf16 or args.fp16):
            model.to(compute_dtype(args))
        model = get_peft_model(model, config)
    return model


def _spared_by_name(model: torch.nn.Module, targets: list[str]) -> list[str] | None:
    """Layers of a vision tower in the checkpoint whose names match the targets, which LoRA must not adapt."""
    spared = [
        name
        for name, _ in model.named_modules()
        if any(part in name for part in NEVER_ADAPTED) and name.rsplit(".", 1)[-1] in targets
    ]
    return spared or None


def smart_tokenizer_and_embedding_resize(special_tokens_dict: dict[str, str], tokenizer: Any, model: Any) -> None:
    """Add special tokens; new rows of both embedding tables are the mean of the old ones."""
    num_new = tokenizer.add_special_tokens(special_tokens_dict)
    grow_embeddings(model, len(tokenizer), num_new)


def prepare_tokenizer(model: Any, model_args: ModelArguments, args: TrainingArguments) -> tuple[Any, Any]:
    """The tokenizer with its pad token, and the prompt template of --version."""
    tokenizer = load_tokenizer(
        model_args.model_name_or_path,
        cache_dir=args.cache_dir,
        model_max_length=args.model_max_length,
        padding_side="right",
    )
    if model_args.version == "v0":
        if tokenizer.pad_token is None:
            smart_tokenizer_and_embedding_resize({"pad_token": PAD_TOKEN}, tokenizer, model)
    else:
        # Some tokenizers have no unk token; padding is masked by length, so any token will do.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer, conv_templates[template_name(model_args.version)]


def template_name(version: str) -> str:
    """Key of `conv_templates` that --version trains; `v0` and `v0.5` are vicuna_v1, as is an unknown one."""
    if version in ("v0", "v0.5"):
        return DEFAULT_TEMPLATE
    if version not in conv_templates:
        known = ", ".join(conv_templates)
        logger.warning("--version %s is no prompt format, %s is used; known: %s", version, DEFAULT_TEMPLATE, known)
        return DEFAULT_TEMPLATE
    return version
