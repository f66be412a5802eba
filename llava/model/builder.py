"""`load_pretrained_model` opens any checkpoint."""

import logging
import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.extras import require_extra
from llava.model import LlavaMptForCausalLM
from llava.model.checkpoint_kind import (
    ADAPTER_CONFIG,
    LORA_EXTRAS,
    STAGE1_WEIGHTS,
    checkpoint_kind,
    find_file,
    has_tuned_tower,
)
from llava.model.connector_choice import choose_connector, pop_overrides
from llava.model.families import classes_of, read_config
from llava.model.loading_report import quiet_loading_report
from llava.model.quantization import NEVER_QUANTISED, guard_cpu_packing
from llava.model.vision_state import load_connector_state, load_tower_state
from llava.model.vision_tokenizer import grow_embeddings
from llava.model.weights import adapter_state, load_weights_only, read_projector
from llava.program import RequestError
from llava.tokenization import load_tokenizer

logger = logging.getLogger(__name__)


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    **kwargs: Any,
) -> tuple[Any, PreTrainedModel, Any, int]:
    """Open a full model, a stage-1 projector, a LoRA directory or a plain language model.

    Args:
        model_path: folder or Hub name.
        model_base: the language model under a projector-only or LoRA checkpoint.
        model_name: upstream's name of the model; it decides only what config.json leaves open.
        load_8bit, load_4bit: quantise the language model with bitsandbytes; 8 bit wins.
        device_map: as in transformers. With `auto` the vision tower stays in float32, else it gets the model's dtype.
        device: anything but `cuda` puts the whole model on that device.
        use_flash_attn: ask for FlashAttention-2.
        kwargs: for `from_pretrained`; `dtype` (or `torch_dtype`) replaces the default float16. The connector's
            settings under their config.json names replace the checkpoint's where no training is needed for it:
            `mm_num_visual_tokens=65` on an AcFormer, `mm_projector_type="top_p"` on an MLP (see `connector_choice`).

    Returns:
        `(tokenizer, model, image_processor, context_len)`; the image processor is None for a plain language model.

    Raises:
        OSError: the checkpoint or one of its files is missing, or needs `model_base`.
        NotImplementedError: a LLaVA checkpoint on another family than Llama and Mistral.
        RequestError: the requested connector or setting would need training.
        ImportError: bitsandbytes or flash-attn is needed and not installed; names the extra.
    """
    overrides = pop_overrides(kwargs)
    dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or torch.float16
    options = _from_pretrained_options(load_8bit, load_4bit, device_map, device, use_flash_attn, dtype) | kwargs
    kind = checkpoint_kind(model_path, model_base, model_name)
    if kind.is_llava and kind.family == "mpt":
        LlavaMptForCausalLM.from_pretrained(model_path)

    if not kind.is_llava:
        if overrides:
            raise RequestError(
                f"{model_path} is a plain language model: it has no connector for {', '.join(overrides)}"
            )
        tokenizer, model = _load_plain(model_path, model_base, options)
        return tokenizer, model, None, _context_length(model)

    model_class, config_class = classes_of(kind.family, model_path)
    if model_base is None:
        if kind.is_lora:
            raise OSError(
                f"{model_path} holds a LoRA adapter ({ADAPTER_CONFIG}) and no language model: give the base it was "
                "trained on as model_base (--model-base)"
            )
        tokenizer = load_tokenizer(model_path)
        config = read_config(config_class, model_path)
        _find_tower_beside(config, model_path)
        projector = choose_connector(config, model_path, None, overrides)
        model = _load_language_model(model_class, model_path, config, options, projector_follows=bool(projector))
        if projector:
            load_connector_state(model.get_model(), projector, model_path)
    else:
        tokenizer = load_tokenizer(model_base)
        config = read_config(config_class, model_path)
        _find_tower_beside(config, model_path)
        choose_connector(config, model_path, model_base, overrides)
        if kind.is_lora:
            model = _load_lora(model_class, model_path, model_base, config, options)
        else:
            logger.info("Loading LLaVA from base model...")
            model = _load_on_base(model_class, model_base, config, options)
            _load_projector(model, _required_file(model_path, STAGE1_WEIGHTS), dtype)

    _add_tokens(model, tokenizer)
    _load_tower(model, options["device_map"], dtype)
    if model_base is not None and has_tuned_tower(model.config):
        weights = _required_file(model_path, LORA_EXTRAS if kind.is_lora else STAGE1_WEIGHTS)
        load_tower_state(model.get_model(), load_weights_only(weights), weights)
    guard_cpu_packing(model, will_train=False)
    model.eval()
    return tokenizer, model, model.get_vision_tower().image_processor, _context_length(model)


def _from_pretrained_options(
    load_8bit: bool, load_4bit: bool, device_map: Any, device: str, use_flash_attn: bool, dtype: torch.dtype
) -> dict[str, Any]:
    options: dict[str, Any] = {"device_map": {"": device} if device != "cuda" else device_map, "dtype": dtype}
    if load_8bit or load_4bit:
        require_extra("bitsandbytes", "quant")
    if load_8bit:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NEVER_QUANTISED)
    elif load_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=NEVER_QUANTISED,
        )
    if use_flash_attn:
        require_extra("flash_attn", "flash")
        options["attn_implementation"] = "flash_attention_2"
    return options


def _load_plain(model_path: str, model_base: str | None, options: dict[str, Any]) -> tuple[Any, PreTrainedModel]:
    if model_base is None:
        return load_tokenizer(model_path), AutoModelForCausalLM.from_pretrained(model_path, **options)
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(model_base, **options)
    merged = PeftModel.from_pretrained(model, model_path).merge_and_unload()
    return load_tokenizer(model_base), merged if "quantization_config" in options else merged.to(options["dtype"])


def _load_language_model(
    model_class: Any, path: str, config: Any, options: dict[str, Any], projector_follows: bool
) -> PreTrainedModel:
    """Load a full checkpoint, with its vision tower if it holds one.

    With `projector_follows` the connector's weights are loaded afterwards. transformers' report, which would list them
    as missing, is replaced by a warning about all others.
    """
    with quiet_loading_report(projector_follows):
        model, info = model_class.from_pretrained(path, config=config, output_loading_info=True, **options)
    missing = [key for key in info["missing_keys"] if "mm_projector" not in key and "vision_tower" not in key]
    if projector_follows and missing:
        logger.warning("%s lacks %s: newly initialised.", path, ", ".join(sorted(missing)))
    _tower_from_its_own_folder(model, info)
    return model


def _tower_from_its_own_folder(model: PreTrainedModel, info: dict[str, Any]) -> None:
    tower = model.get_vision_tower()
    if tower is not None and tower.is_loaded and any("vision_tower" in key for key in info["missing_keys"]):
        tower.is_loaded = False  # built empty, and the checkpoint did not fill it


def _load_on_base(model_class: Any, base: str, config: Any, options: dict[str, Any]) -> PreTrainedModel:
    """Base weights under a LLaVA configuration; the vocabulary may have grown in training.

    A tuned tower is not part of the base: it is built from its folder later, then loaded.
    """
    trained_vocabulary, tuned_tower = config.vocab_size, has_tuned_tower(config)
    config.vocab_size = read_config(type(config), base).vocab_size
    config.tune_vision_tower = False
    model = _load_language_model(model_class, base, config, options, projector_follows=True)
    model.config.tune_vision_tower = tuned_tower
    if trained_vocabulary > config.vocab_size:
        grow_embeddings(model, trained_vocabulary, num_new=trained_vocabulary - config.vocab_size)
    return model


def _load_projector(model: PreTrainedModel, path: str, dtype: torch.dtype) -> None:
    """Stage-1 file: the connector, and the embedding rows that were trained with it."""
    state = load_weights_only(path)
    load_connector_state(model.get_model(), state, path)
    parts = ("mm_projector.", "vision_tower.")
    rest = {key: value.to(dtype) for key, value in state.items() if not any(part in key for part in parts)}
    _load_non_strict(model, rest)


def _load_lora(model_class: Any, path: str, base: str, config: Any, options: dict[str, Any]) -> PreTrainedModel:
    """Base, other trained weights, adapter, merge. The tower is not loaded yet, so its `q_proj` do not match."""
    from peft import PeftModel

    logger.info("Loading LLaVA from base model...")
    model = _load_on_base(model_class, base, config, options)
    logger.info("Loading additional LLaVA weights...")
    extras = _clean_keys(load_weights_only(_required_file(path, LORA_EXTRAS)))
    _load_non_strict(model, {key: value.to(options["dtype"]) for key, value in extras.items()})
    if not adapter_state(extras, "mm_projector"):
        _load_projector_of_base(model, path, base)
    logger.info("Loading LoRA weights...")
    model = PeftModel.from_pretrained(model, path)
    logger.info("Merging LoRA weights...")
    model = model.merge_and_unload()
    logger.info("Model is loaded...")
    return model


def _load_projector_of_base(model: PreTrainedModel, path: str, base: str) -> None:
    """The connector of a LoRA run that did not train it.

    Raises:
        OSError: the base has none either.
    """
    state = read_projector(base, None)
    if not state:
        raise OSError(
            f"Neither {path} nor its base {base} holds the weights of the connector "
            f"{model.config.mm_projector_type!r}; give the base that the LoRA was trained on as model_base"
        )
    load_connector_state(model.get_model(), {f"mm_projector.{key}": value for key, value in state.items()}, base)


def _clean_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop PEFT's prefixes: a leading `base_model.`, then one `model.` if any key starts with `model.model.`."""
    state = {key.removeprefix("base_model."): value for key, value in state.items()}
    if any(key.startswith("model.model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    return state


def _load_non_strict(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    projector = adapter_state(state, "mm_projector")
    projector = model.get_model().mm_projector.load_published_state(projector)
    state = {key: value for key, value in state.items() if "mm_projector." not in key}
    state |= {f"model.mm_projector.{key}": value for key, value in projector.items()}
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    unexpected = [key for key in unexpected if "vision_tower" not in key]
    if unexpected:
        logger.warning("Entries that the model has no place for: %s", ", ".join(unexpected))


def _required_file(model_path: str, name: str) -> str:
    found = find_file(model_path, name)
    if found is None:
        raise FileNotFoundError(f"{model_path} has no {name}, which a checkpoint opened with model_base needs")
    return found


def _add_tokens(model: PreTrainedModel, tokenizer: Any) -> None:
    if getattr(model.config, "mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if getattr(model.config, "mm_use_im_start_end", False):
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    rows = model.get_input_embeddings().num_embeddings
    grow_embeddings(model, len(tokenizer), num_new=max(0, len(tokenizer) - rows))


def _load_tower(model: PreTrainedModel, device_map: Any, dtype: torch.dtype) -> None:
    """Load the tower and place it with the model.

    Raises:
        ValueError: the configuration names no tower.
    """
    tower = model.get_vision_tower()
    if tower is None:
        raise ValueError("config.json has no mm_vision_tower: this LLaVA checkpoint cannot take images")
    if not tower.is_loaded:
        tower.load_model(dtype=torch.float32 if device_map == "auto" else dtype)
    tower.to(device=model.device)


def _find_tower_beside(config: Any, model_path: str) -> None:
    """A relative path to a tower that does not exist may be relative to the checkpoint's folder."""
    name = getattr(config, "mm_vision_tower", None)
    if name and not os.path.exists(name) and os.path.isdir(os.path.join(model_path, name)):
        config.mm_vision_tower = os.path.join(model_path, name)


def _context_length(model: PreTrainedModel) -> int:
    return getattr(model.config, "max_sequence_length", 2048)
