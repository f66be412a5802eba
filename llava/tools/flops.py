"""FLOPs of the parts of a LLaVA model, from their sizes alone.

Two FLOPs per multiply-add; causal attention counted half; work without matrix products (norms, softmax, anchor search,
pooling) not counted. All figures are for one image or one sequence.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LLMShape:
    """The sizes of a Llama-like decoder that its arithmetic depends on."""

    hidden_size: int
    layers: int
    intermediate_size: int
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def layer_weights(self) -> int:
        """P: weights of all layers' matrices, `L (4 d^2 + 3 d I)` where queries and keys have as many heads."""
        attention = 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)


@dataclass(frozen=True)
class VisionShape:
    """A ViT as CLIP's: class token, square grid of patches, feed-forward of four times the width."""

    width: int = 1024
    blocks: int = 24
    heads: int = 16
    side: int = 24
    patch_values: int = 14 * 14 * 3

    @property
    def patches(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class ResamplerShape:
    """The resampler at the tower's width."""

    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4


@dataclass(frozen=True)
class GeneratorShape:
    """VLoRA's generator and the weights it makes; the defaults are the published script's."""

    width: int = 512
    depth: int = 8
    rank: int = 64
    letters: str = "qkvom"
    skip: int = 4
    is_separate: bool = True
    ratio: int = 4

    def in_widths(self, llm: LLMShape) -> list[int]:
        """Input width of each letter's matrix."""
        return [llm.heads * llm.head_dim if letter == "o" else llm.hidden_size for letter in self.letters]

    def out_widths(self, llm: LLMShape) -> list[int]:
        """Output width of each letter's matrix."""
        heads = {"q": llm.heads, "k": llm.kv_heads, "v": llm.kv_heads}
        return [heads[t] * llm.head_dim if t in heads else llm.hidden_size for t in self.letters]

    def image_values(self, llm: LLMShape) -> int:
        """Numbers that one image becomes: `in x r` for every weighted matrix."""
        return llm.layers // self.skip * self.rank * sum(self.in_widths(llm))


CLIP_L_336 = VisionShape()
RESAMPLER = ResamplerShape()
GENERATOR = GeneratorShape()


def llm_forward_flops(llm: LLMShape, positions: int, logits: int) -> int:
    """One forward pass of one sequence: `2 n P + 2 n^2 d L + 2 n_logits d V`."""
    attention = 2 * positions**2 * llm.heads * llm.head_dim * llm.layers
    return 2 * positions * llm.layer_weights + attention + 2 * logits * llm.hidden_size * llm.vocab_size


def vit_flops(blocks: int = 23, vision: VisionShape = CLIP_L_336) -> int:
    """The first `blocks` blocks for one image, `24 m D^2 + 4 m^2 D` each, and the patch embedding."""
    tokens, width = vision.patches + 1, vision.width
    embedding = 2 * vision.patches * vision.patch_values * width
    return embedding + blocks * (24 * tokens * width**2 + 4 * tokens**2 * width)


def resampler_flops(tokens: int, vision: VisionShape = CLIP_L_336, shape: ResamplerShape = RESAMPLER) -> int:
    """T queries gather one image: per layer `4 T D i + 4 m D i + 4 T m i + 4 f T D^2`, i the attention's width."""
    media, width, inner = vision.patches + 1, vision.width, shape.heads * shape.dim_head
    attention = 4 * tokens * width * inner + 4 * media * width * inner + 4 * tokens * media * inner
    return shape.depth * (attention + 4 * shape.ff_mult * tokens * width**2)


def mlp_flops(tokens: int, in_width: int, out_width: int, depth: int = 2) -> int:
    """`mlp<depth>x_gelu` on `tokens` rows: `2 T (D d + (depth - 1) d^2)`."""
    return 2 * tokens * (in_width * out_width + (depth - 1) * out_width**2)


def c_abstractor_flops(tokens: int, vision: VisionShape = CLIP_L_336) -> int:
    """C-Abstractor's convolutions: three blocks on all patches, three on `tokens` cells."""
    width = vision.width
    squeeze_excite = 4 * width * round(width / 4)
    return sum(3 * (cells * (4 * width**2 + 18 * width) + squeeze_excite) for cells in (vision.patches, tokens))


def generator_flops(llm: LLMShape, vision: VisionShape = CLIP_L_336, shape: GeneratorShape = GENERATOR) -> int:
    """Perceptual weights of one image: `2 N D g + S depth c + 2 w g in r`, S stacks of w queries each.

    c is one decoder layer, `(12 + 4 ratio) w g^2 + 4 N g^2 + 4 w^2 g + 4 w N g`, most of it keys and values of the N
    patches; the last term is the heads, over all queries.
    """
    groups, width, patches = llm.layers // shape.skip, shape.width, vision.patches
    stacks, queries = (len(shape.letters), groups) if shape.is_separate else (1, len(shape.letters) * groups)
    layer = (12 + 4 * shape.ratio) * queries * width**2 + 4 * patches * width**2
    layer += 4 * queries**2 * width + 4 * queries * patches * width
    heads = 2 * width * shape.image_values(llm)
    return 2 * patches * vision.width * width + stacks * shape.depth * layer + heads


def low_rank_flops(llm: LLMShape, positions: int, shape: GeneratorShape = GENERATOR) -> int:
    """What perceptual weights add to a forward pass: `2 n r (in + out)` for every weighted matrix."""
    widths = sum(shape.in_widths(llm)) + sum(shape.out_widths(llm))
    return 2 * positions * shape.rank * widths * (llm.layers // shape.skip)
