"""Add the vision tower and the connector to a language model, with their configuration, and set what trains."""

from typing import Any

from llava.images import parse_pinpoints
from llava.model.anyres import CropLayout
from llava.model.multimodal_projector.registry import Connector
from llava.model.multimodal_projector.settings import check_aspect_ratio
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.dtypes import compute_dtype, tower_dtype
from llava.train.model_setup import template_name
from llava.train.planning import BatchLayout


def add_vision(
    model: Any, tokenizer: Any, model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments
) -> None:
    """Add tower and connector, write the vision keys of the configuration, and set what trains."""
    inner = model.get_model()
    inner.initialize_vision_modules(model_args=model_args)
    tower = model.get_vision_tower()
    tower.to(dtype=tower_dtype(args, model_args.tune_vision_tower), device=args.device)
    tower.requires_grad_(False)  # also one that came with the checkpoint
    data_args.image_processor = tower.image_processor
    data_args.is_multimodal = True
    data_args.uint8_images = True

    config = model.config
    config.image_aspect_ratio = data_args.image_aspect_ratio
    check_aspect_ratio(config, inner.mm_projector)
    if data_args.image_aspect_ratio == "anyres":
        config.image_grid_pinpoints = data_args.image_grid_pinpoints = settle_pinpoints(data_args, tower)
    check_recomputation(inner.mm_projector, args)
    data_args.elastic_budgets = []
    if model_args.mm_elastic_budgets:
        data_args.elastic_budgets = elastic_budgets(model_args.mm_elastic_budgets, inner.mm_projector, tower, config)
    if data_args.elastic_budgets or hasattr(config, "mm_elastic_budgets"):  # also a base checkpoint's, now outdated
        config.mm_elastic_budgets = data_args.elastic_budgets
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length
    config.tune_mm_mlp_adapter = args.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter
    config.freeze_mm_mlp_adapter = args.freeze_mm_mlp_adapter
    if model_args.tune_mm_mlp_adapter:
        model.requires_grad_(False)
        inner.mm_projector.requires_grad_(True)
        if hasattr(inner, "image_newline"):
            inner.image_newline.requires_grad_(True)
    if args.freeze_mm_mlp_adapter:
        inner.mm_projector.requires_grad_(False)
    if model_args.tune_vision_tower:
        tower.unfreeze()
        config.tune_vision_tower = True
    elif not hasattr(config, "tune_vision_tower"):  # else the checkpoint's tower was tuned before, and it is its own
        config.tune_vision_tower = False
    if args.bits in (4, 8):
        inner.mm_projector.to(dtype=compute_dtype(args), device=args.device)
    if not model_args.tune_mm_mlp_adapter:  # stage 1 leaves the language model with its own prompt format
        config.conv_mode = template_name(model_args.version)
    config.mm_use_im_start_end = data_args.mm_use_im_start_end = model_args.mm_use_im_start_end
    config.mm_projector_lr = args.mm_projector_lr
    args.mm_use_im_start_end = model_args.mm_use_im_start_end
    config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
    model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)


def settle_pinpoints(data_args: DataArguments, tower: Any) -> list[list[int]]:
    """The canvases of anyres, (width, height) in pixels.

    Raises:
        ValueError: a canvas is not made of whole crops of the tower's size.
    """
    side = tower.config.image_size
    if data_args.image_grid_pinpoints is None:
        return [[side * w, side * h] for w, h in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    pinpoints = [list(canvas) for canvas in parse_pinpoints(data_args.image_grid_pinpoints)]
    if not pinpoints or any(len(canvas) != 2 or any(n < side or n % side for n in canvas) for canvas in pinpoints):
        raise ValueError(
            f"--image_grid_pinpoints {data_args.image_grid_pinpoints}: widths and heights must be multiples of the "
            f"vision tower's {side} pixels"
        )
    return pinpoints


def elastic_budgets(text: str, connector: Connector, tower: Any, config: Any) -> list[int]:
    """The numbers of visual tokens to train with.

    Raises:
        ValueError: not a list of numbers, or the connector cannot make one of them.
    """
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--mm_elastic_budgets must be numbers separated by commas, not {text!r}") from None
    if not connector.is_elastic:
        raise ValueError(f"--mm_elastic_budgets: {config.mm_projector_type} has a fixed number of visual tokens")
    heads, patches = tower.config.num_attention_heads, tower.num_patches
    return sorted({connector.count_tokens(budget, heads, patches) for budget in budgets})


def batch_layout(model: Any, data_args: DataArguments, args: TrainingArguments) -> BatchLayout:
    """How batches of this run are laid out."""
    tower = model.get_vision_tower()
    return BatchLayout(
        space=model.space,
        num_visual_tokens=model.num_visual_tokens,
        max_length=args.model_max_length,
        packed=args.packing,
        chunked_loss=args.chunked_loss,
        loss_average=args.loss_average,
        crops=CropLayout.of_config(model.config, tower) if data_args.image_aspect_ratio == "anyres" else None,
        elastic_budgets=tuple(data_args.elastic_budgets),
    )


def check_recomputation(projector: Connector, args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: reentrant recomputation, which cannot reach weights that come as a keyword of a layer.
    """
    asked = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if asked and projector.space != "input":
        raise ValueError(
            "Perceptual weights need recomputation that is not reentrant: leave --gradient_checkpointing_kwargs out, "
            "or set use_reentrant to false in it"
        )
