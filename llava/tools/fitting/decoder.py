"""Activations of a Llama-like decoder in training: what autograd keeps between forward and backward, by formula.

Letters: s bytes of an activation value (2 in bf16, 4 in float32), d hidden size, I feed-forward width, q and k the
widths of queries and of keys, h heads, r ranks. Per position, one layer keeps

    frozen      8 d + s (2 q + 2 k + 3 I) + 4 h + 8
    trained     frozen + s (4 d + I)
    LoRA        frozen + (s + m) (5 d + q + I) + 7 s r

The terms: the two RMSNorms keep a float32 copy of their input (4 d each; in float32 the input itself) and a root.
Fused attention keeps q, k, v, its result and one number per head. SwiGLU keeps the gate before and after SiLU, and the
other factor. Rotary positions keep nothing that depends on the layer. A frozen matrix keeps nothing; one that trains
keeps its input (for q, k, v and for gate, up the same one; the result of attention is kept anyway), and so does
the scale of a norm. LoRA drops out each matrix's input on its own and keeps the result, a mask of m bytes a value, and
the narrow product; without dropout the input is kept once for the matrices that share it.

At 7B a frozen layer keeps 128.6 KiB a position in bf16, all 32 layers 4.02 MiB.

With recomputation a layer keeps its input, s d, and the layer whose turn it is in the backward pass all of the above.
While gradients pass through SwiGLU, s (d + 3 I) are there in addition; the input of a trained down projection is free
by then.
"""

from dataclasses import dataclass

from llava.tools.flops import GeneratorShape, LLMShape

FLOAT32 = 4


@dataclass(frozen=True)
class LoraShape:
    """LoRA on the seven matrices of every layer.

    Attributes:
        mask: bytes of one value of a dropout mask: 1 on a GPU, those of the activations on a CPU.
    """

    rank: int
    dropout: float = 0.0
    mask: int = 1


@dataclass(frozen=True)
class DecoderMemory:
    """The activations of a decoder.

    Attributes:
        value: s, bytes of an activation value.
        trains: whether the decoder's own weights train.
        lora: adapters, or None.
        generator: perceptual weights that act on the decoder, or None.
        packs: a row holds several samples. torch's attention takes them one by one, and the results are copied side
            by side; a trained output projection keeps the copy, too, `s q`. FlashAttention needs no copy.
    """

    llm: LLMShape
    value: int
    trains: bool
    recomputes: bool
    lora: LoraShape | None = None
    generator: GeneratorShape | None = None
    packs: bool = False

    @property
    def _queries(self) -> int:
        return self.llm.heads * self.llm.head_dim

    @property
    def _keys(self) -> int:
        return self.llm.kv_heads * self.llm.head_dim

    def layer_bytes(self) -> int:
        """What one layer without perceptual weights keeps, per position."""
        llm, s = self.llm, self.value
        kept = 8 * llm.hidden_size + 8 + 4 * llm.heads
        kept += s * (2 * self._queries + 2 * self._keys + 3 * llm.intermediate_size)
        if self.trains:
            kept += s * (4 * llm.hidden_size + llm.intermediate_size + self.packs * self._queries)
        return kept + self._lora_bytes()

    def _lora_bytes(self) -> int:
        if self.lora is None:
            return 0
        d, s = self.llm.hidden_size, self.value
        narrow = 7 * s * self.lora.rank
        if self.lora.dropout == 0:
            return s * (2 * d + self.llm.intermediate_size) + narrow
        return (s + self.lora.mask) * (5 * d + self._queries + self.llm.intermediate_size) + narrow

    def weighted_layer_bytes(self) -> int:
        """What perceptual weights add to a layer that has them: `s (2 d + 5 r)`, in a decoder that trains `5 s r`.

        The products with A need their inputs: the hidden state in front of q, k and v, and that of the feed-forward.
        """
        if self.generator is None:
            return 0
        letters = self.generator.letters
        inputs = 0 if self.trains else bool(set("qkv") & set(letters)) + ("m" in letters)
        return self.value * (inputs * self.llm.hidden_size + len(letters) * self.generator.rank)

    @property
    def _weighted_layers(self) -> int:
        return 0 if self.generator is None else self.llm.layers // self.generator.skip

    def saved_layers(self, positions: int) -> int:
        """Alive between forward and backward in all layers."""
        llm = self.llm
        if self.recomputes:
            return positions * llm.layers * self.value * llm.hidden_size
        return positions * (llm.layers * self.layer_bytes() + self._weighted_layers * self.weighted_layer_bytes())

    def saved(self, positions: int) -> int:
        """`saved_layers`, and the last norm with the input of the logits."""
        width = self.llm.hidden_size
        last = FLOAT32 * width + FLOAT32 + self.value * width * (2 if self.trains else 1)
        return self.saved_layers(positions) + positions * last

    def one_layer(self, positions: int) -> int:
        """What is left of `saved_layers` when the backward pass has reached the first layer."""
        kept = self.value * self.llm.hidden_size if self.recomputes else self.layer_bytes()
        return positions * kept

    def backward_extra(self, positions: int) -> int:
        """On top of what is saved while the backward pass is in one layer, gradients of weights not counted."""
        llm, s = self.llm, self.value
        extra = s * (llm.hidden_size + 3 * llm.intermediate_size)
        if self.trains:
            extra -= s * llm.intermediate_size
        if self.recomputes:
            extra += self.layer_bytes() + self.weighted_layer_bytes()
            if s == FLOAT32:
                extra -= s * llm.hidden_size  # what the first norm keeps is the layer's input, which is counted
        return positions * extra

    def image_gradients(self, images: int) -> int:
        """Gradients of the perceptual weights of a batch, at the first weighted layer.

        Every layer's gradient comes letter by letter in a tensor of all layers' size, which is added to the sum of
        the earlier ones. The weights themselves are the connector's result.
        """
        if self.generator is None:
            return 0
        values = images * self.generator.image_values(self.llm)
        return round(self.value * values * (1 + 1 / len(self.generator.letters)))


def loss_bytes(positions: int, vocabulary: int, value: int) -> tuple[int, int]:
    """The loss over the logits of all positions: `(peak in the forward pass, peak in the backward pass)`.

    Forward: the logits, their float32 copy and the log-softmax, `s V + 4 V + 4 V` (in float32 no copy). Backward: the
    log-softmax, its gradient and that of the logits, `12 V`, and then the latter in the model's precision.
    """
    copy = 0 if value == FLOAT32 else FLOAT32
    forward = positions * vocabulary * (value + copy + FLOAT32)
    return forward, 3 * FLOAT32 * positions * vocabulary
