"""The peak memory of a training step: what is alive at each of its moments."""

from dataclasses import dataclass

from llava.model.label_loss import ROWS_AT_ONCE
from llava.tools.fitting.decoder import DecoderMemory, loss_bytes
from llava.tools.fitting.states import States
from llava.tools.fitting.traced import TracedMemory


def mask_bytes(samples: int, length: float, value: int) -> int:
    """Attention masks, which only perceptual weights need, for their masked slot: boolean, and as a bias."""
    return round(samples * length**2 * (1 + value))


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device.

    Attributes:
        states: weights, gradients, optimizer.
        decoder: activations that the decoder keeps for the backward pass.
        layer: what the layer in work needs in addition.
        connector: activations of the connector, and of a tower that trains.
        loss: logits, their copies and gradients at the most.
        tower: workspace of the vision tower.
        moments: the sum at each moment of a step; the largest is the peak.
    """

    states: States
    decoder: int
    layer: int
    connector: int
    loss: int
    tower: int
    moments: dict[str, int]

    @property
    def moment(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=self.moments.__getitem__)

    @property
    def peak(self) -> int:
        return self.moments[self.moment]


def step_memory(
    states: States,
    decoder: DecoderMemory,
    connector: TracedMemory,
    tower: TracedMemory,
    *,
    positions: int,
    images: int,
    own_gradients: int,
    chunked_loss: bool = False,
    accumulates: bool = False,
    inputs: int = 0,
) -> StepMemory:
    """Add up one micro-batch and the optimizer step after it.

    Args:
        positions: of the language model, padding included.
        images: of the micro-batch.
        own_gradients: bytes of the gradients of tower and connector that the traces contain.
        chunked_loss: the loss is taken in chunks of labelled positions.
        accumulates: gradients of earlier micro-batches are there from the start.
        inputs: bytes of the batch itself and of attention masks.
    """
    llm = decoder.llm
    base = states.weights + states.optimizer + states.buffers + inputs
    kept = states.gradients if accumulates or states.holds_gradients else 0
    first = max(kept, states.first_gradients)
    most = max(kept, states.gradients - states.late_gradients)

    loss_positions = min(positions, ROWS_AT_ONCE) if chunked_loss else positions
    loss = max(loss_bytes(loss_positions, llm.vocab_size, decoder.value))
    if chunked_loss:
        loss += decoder.value * positions * llm.hidden_size  # the labelled hidden states, and later their gradient
    saved = decoder.saved(positions)
    layer = decoder.backward_extra(positions)
    shared = connector.saved + (tower.saved if tower.backward_peak else 0)
    last_layer = base + shared + decoder.saved_layers(positions) + layer
    first_layer = base + shared + decoder.one_layer(positions) + layer + decoder.image_gradients(images)
    visual = connector.backward_peak + tower.backward_peak
    moments = {
        "vision tower": base + kept + tower.forward_peak,
        "loss": base + kept + shared + saved + loss,
        "backward, last layer": last_layer + first,
        "backward, first layer": first_layer + most,
        "backward, connector": base + states.gradients + max(visual - own_gradients, 0),
        "optimizer step": base + states.gradients + states.step,
    }
    return StepMemory(states, saved, layer, shared, loss, tower.forward_peak, moments)
