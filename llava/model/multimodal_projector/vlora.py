"""VLoRA: the image as low-rank weights of the language model (arXiv 2405.20339)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from .perceptual_weights import LETTERS, PerceptualWeights
from .registry import BareParameters, Connector, register_connector, setting
from .vision_features import VisionFeatures
from .weight_generator import Attention, Stack, run_stacks


@dataclass
class VLoRAConfig:
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""

    vlora_dim: int = setting(512, "Width g of the generator.", minimum=1)
    vlora_depth: int = setting(4, "Decoder layers of a generator stack.", minimum=1)
    vlora_heads: int = setting(16, "Attention heads of the generator.", minimum=1)
    vlora_ratio: int = setting(4, "Feed-forward width of the generator, in multiples of its width.", minimum=1)
    vlora_visual_dim: int | None = setting(None, "Width of the vision tower; derived.")
    vlora_pos_num: int | None = setting(None, "Patches of an image; derived.")
    vlora_llm_dim: int | None = setting(None, "Width of the language model; derived.")
    vlora_llm_depth: int | None = setting(None, "Decoder layers of the language model; derived.")
    vlora_rank: int = setting(2, "Rank of the weights.", minimum=1)
    vlora_alpha: float | None = setting(None, "Scale: the weights are multiplied by alpha / rank; default: the rank.")
    vlora_type: str = setting("qkvo", "Weighted matrices: letters of q, k, v, o and m (the whole MLP).")
    weights_sep: bool = setting(True, "One generator stack per letter instead of one for all.")
    skip_layers: int = setting(1, "Decoder layer l is weighted if (l + 1) is a multiple of it.", minimum=1)
    vlora_reduction: str = setting("mean", "Several images of a row: mean or sum of their weights.", at_load=True)


@dataclass(frozen=True)
class DecoderShape:
    """The shapes that the weights must fit: widths of every letter, and the number of decoder layers."""

    in_widths: dict[str, int]
    out_widths: dict[str, int]
    layers: int

    @classmethod
    def of_config(cls, config: Any) -> "DecoderShape":
        width = config.hidden_size
        heads = getattr(config, "num_attention_heads", 1)
        head_dim = getattr(config, "head_dim", None) or width // heads
        inner = heads * head_dim
        kv = (getattr(config, "num_key_value_heads", None) or heads) * head_dim
        return cls(
            {"q": width, "k": width, "v": width, "o": inner, "m": width},
            {"q": inner, "k": kv, "v": kv, "o": width, "m": width},
            config.num_hidden_layers,
        )


@register_connector("vlora", VLoRAConfig)
class VLoRA(Connector, BareParameters):
    """`A = head(decoders(Q, X W_p + P))` per letter and weighted layer, X `[B, N, Dv]` the patches without class token.

    `y += alpha / r (x A) B^T` on the chosen matrices of the chosen decoder layers; B is learned and starts at zero, so
    that training starts at the text-only language model.
    """

    space: ClassVar[str] = "parameter"
    num_visual_tokens = 0

    def __init__(self, settings: VLoRAConfig, vision_width: int, num_patches: int, shape: DecoderShape) -> None:
        super().__init__()
        check_settings(settings, vision_width, shape)
        self.letters, self.skip, self.rank = settings.vlora_type, settings.skip_layers, settings.vlora_rank
        self.groups = shape.layers // settings.skip_layers
        self.scale = 1.0 if settings.vlora_alpha is None else settings.vlora_alpha / self.rank
        self.reduction = settings.vlora_reduction
        # Sizes are kept beside the parameters, which are empty while ZeRO-3 has them in pieces.
        self.num_patches = num_patches
        self.width = width = settings.vlora_dim
        self.heads = settings.vlora_heads
        stack = (width, settings.vlora_depth, settings.vlora_ratio)
        self.visual_proj = nn.Linear(vision_width, width)
        self.pos_embed = nn.Parameter(torch.empty(1, num_patches, width))
        if settings.weights_sep:
            outs = [shape.in_widths[letter] * self.rank for letter in self.letters]
            self.gen = nn.ModuleList(Stack(self.groups, *stack, out) for out in outs)
        else:
            out = shape.in_widths[self.letters[0]] * self.rank
            self.gen = Stack(len(self.letters) * self.groups, *stack, out)
        out_widths = {shape.out_widths[letter] for letter in self.letters}
        if len(out_widths) == 1:  # the published, packed form
            self.Bs = nn.Parameter(torch.empty(1, len(self.letters) * self.groups, out_widths.pop() * self.rank))
        else:
            self.Bs = nn.ParameterDict(
                {t: nn.Parameter(torch.empty(self.groups, shape.out_widths[t], self.rank)) for t in self.letters}
            )
        self.reset_parameters()

    @classmethod
    def derive_settings(cls, config: Any, tower: Any) -> None:
        shape = DecoderShape.of_config(config)
        derived = {
            "vlora_visual_dim": config.mm_hidden_size,
            "vlora_pos_num": tower.num_patches,
            "vlora_llm_dim": shape.in_widths["q"],
            "vlora_llm_depth": shape.layers,
            "vlora_alpha": config.vlora_rank,
        }
        for name, value in derived.items():
            if getattr(config, name, None) is None:
                setattr(config, name, value)

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        return 0

    def check_tower(self, num_heads: int, num_patches: int) -> None:
        if self.num_patches != num_patches:
            raise ValueError(
                f"vlora_pos_num is {self.num_patches}, but the vision tower has {num_patches} patches; leave "
                "the setting out, it is derived"
            )

    @classmethod
    def from_config(cls, settings: VLoRAConfig, config: Any) -> "VLoRA":
        return cls(settings, config.mm_hidden_size, settings.vlora_pos_num, DecoderShape.of_config(config))

    def explain_misfit(self, state: dict[str, torch.Tensor]) -> str | None:
        """The published scripts contradict one another: stage 1 says --vlora_dim 1024, stage 2 says 512."""
        if "visual_proj.weight" not in state:
            return None
        theirs, ours = len(state["visual_proj.weight"]), self.width
        if theirs == ours:
            return None
        return (
            f"its generator has vlora_dim {theirs}, this one {ours}. Give --vlora_dim {theirs}, or train stage 1 again "
            f"with --vlora_dim {ours}; both stages need the same (the published scripts say 1024 and 512)"
        )

    def reset_parameters(self) -> None:
        """Initialise everything; B is zero, so that training starts at the text-only model."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, Attention)):
                module.reset_parameters()
            elif isinstance(module, Stack):
                nn.init.normal_(module.queries)
        nn.init.normal_(self.pos_embed)
        for factor in self._output_parameters():
            nn.init.zeros_(factor)

    def _output_parameters(self) -> list[torch.Tensor]:
        return list(self.Bs.values()) if isinstance(self.Bs, nn.ParameterDict) else [self.Bs]

    def outputs(self) -> dict[str, torch.Tensor]:
        """B `[G, out, r]` per letter, times alpha / r."""
        if isinstance(self.Bs, nn.ParameterDict):
            return {letter: factor * self.scale for letter, factor in self.Bs.items()}
        packed = (self.Bs[0] * self.scale).unflatten(0, (len(self.letters), self.groups)).unflatten(-1, (-1, self.rank))
        return dict(zip(self.letters, packed, strict=True))

    def forward(self, features: VisionFeatures, num_visual_tokens: int | None = None) -> PerceptualWeights:
        image = self.visual_proj(features.patches) + self.pos_embed
        stacks = self.gen if isinstance(self.gen, nn.ModuleList) else [self.gen]
        made = run_stacks(stacks, image, self.heads)  # per letter, or all letters in one
        per_letter = [x for own in made for x in own.split(self.groups, dim=1)]  # [B, G, in * r] each
        inputs = {t: x.unflatten(-1, (-1, self.rank)) for t, x in zip(self.letters, per_letter, strict=True)}
        return PerceptualWeights(inputs, self.outputs(), self.skip, reduction=self.reduction)


def check_settings(settings: VLoRAConfig, vision_width: int, shape: DecoderShape) -> None:
    """Refuse settings that contradict one another or the models; the message names both numbers.

    Raises:
        ValueError: see there.
    """
    if settings.vlora_pos_num is None:
        raise ValueError("vlora_pos_num, the vision tower's number of patches, is not in the configuration")
    derived = {
        "vlora_visual_dim": (vision_width, "the vision tower's width"),
        "vlora_llm_dim": (shape.in_widths["q"], "the language model's width"),
        "vlora_llm_depth": (shape.layers, "the language model's number of layers"),
    }
    for name, (real, what) in derived.items():
        given = getattr(settings, name)
        if given is not None and given != real:
            raise ValueError(f"{name} is {given}, but {what} is {real}; leave the setting out, it is derived")
    letters = settings.vlora_type
    if not letters or set(letters) - set(LETTERS) or len(set(letters)) < len(letters):
        raise ValueError(f"vlora_type is {letters!r}; it must be different letters of {LETTERS}")
    if settings.vlora_reduction not in ("mean", "sum"):
        raise ValueError(f"vlora_reduction is {settings.vlora_reduction!r}; it must be mean or sum")
    if settings.vlora_dim % settings.vlora_heads:
        raise ValueError(f"vlora_dim {settings.vlora_dim} is not a multiple of vlora_heads {settings.vlora_heads}")
    if settings.skip_layers > shape.layers:
        raise ValueError(f"skip_layers is {settings.skip_layers}; the language model has {shape.layers} layers")
    widths = {shape.in_widths[letter] for letter in letters}
    if not settings.weights_sep and len(widths) > 1:
        raise ValueError(f"weights_sep False needs equal input widths of all letters, not {sorted(widths)}")
