"""The replies that share the forwards of the model: their cache slots, prefill pieces and decoding steps."""

from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from llava.model.multimodal_projector.perceptual_weights import BoundWeights
from llava.program import RequestError
from llava.serve.engine.attention import DecodeStep, PrefillStep, Segment, use_slotted_attention
from llava.serve.engine.generation import ContextFullError, EngineSettings, Reply
from llava.serve.engine.kv_slots import CacheGeometry, KVSlots, slot_length
from llava.serve.engine.prompts import join_weights

IDLE_FACTOR = 4  # prefill pieces are this much longer while no reply is decoding

StepOutput: TypeAlias = tuple[list[Reply], torch.Tensor]  # replies, and their logits `[B, V]`


class Batch:
    """All replies that hold a cache slot. Used by the engine's thread only.

    Args:
        model: its attention implementation is replaced by one that reads slots.
        settings: of the engine.

    Attributes:
        reading: replies whose prompts are not prefilled completely.
        running: replies that get one token per step.
    """

    def __init__(self, model: PreTrainedModel, settings: EngineSettings) -> None:
        use_slotted_attention(model)
        self.model = model
        self.prefill_chunk, self.context_length = settings.prefill_chunk, settings.context_length
        self.slots = KVSlots(CacheGeometry.of_model(model), settings.cache_bytes)
        self.reading: list[Reply] = []
        self.running: list[Reply] = []
        self._window = getattr(model.config, "sliding_window", None)
        self._weights: BoundWeights | None = None
        self._rows_changed = False

    def __len__(self) -> int:
        return len(self.reading) + len(self.running)

    @property
    def replies(self) -> list[Reply]:
        return [*self.reading, *self.running]

    def place(self, reply: Reply) -> bool:
        """Acquire a slot for prompt and longest reply, so that no reply stops half-way; False while there is no room.

        Raises:
            ContextFullError: the prompt fills the context.
            RequestError: prompt and reply do not fit into the empty cache.
        """
        limit, prompt = self.context_length, reply.prompt
        reply.max_new_tokens = min(reply.request.max_new_tokens, limit - len(prompt))
        if reply.max_new_tokens < 1:
            raise ContextFullError(f"the prompt has {len(prompt)} tokens, and the model's context {limit}")
        needed = len(prompt) + reply.max_new_tokens
        most = self.slots.budget - reply.weight_bytes
        if slot_length(needed) * self.slots.geometry.bytes_per_token > most:
            raise RequestError(
                f"prompt and reply need room for {needed} tokens, more than the cache of {self.slots.budget} bytes "
                "has; ask for fewer new tokens, or start the worker with a larger --cache-gb"
            )
        taken = sum(r.weight_bytes for r in (*self.reading, *self.running))
        reply.slot = self.slots.acquire(needed, reserved=taken, own=reply.weight_bytes)
        if reply.slot is None:
            return False
        self.reading.append(reply)
        return True

    def remove(self, reply: Reply, is_clean: bool) -> None:
        """Release a reply's slot.

        Args:
            reply: running or reading.
            is_clean: see `KVSlots.release`.
        """
        self.slots.release(reply.slot, is_clean=is_clean)
        reply.slot = None
        for rows in (self.reading, self.running):
            if reply in rows:
                rows.remove(reply)
                self._rows_changed = True

    def next_pieces(self) -> list[tuple[Reply, int]]:
        """The prompts to prefill next, and how many tokens of each."""
        room = self.prefill_chunk * (1 if self.running else IDLE_FACTOR)
        pieces: list[tuple[Reply, int]] = []
        for reply in self.reading:
            has_weights = reply.prompt.weights is not None
            if room == 0 or (pieces and has_weights):  # weights apply to a whole row, and a packed row has many owners
                break
            count = min(room, len(reply.prompt) - reply.slot.filled)
            pieces.append((reply, count))
            room -= count
            if has_weights:
                break
        return pieces

    def read_prompts(self, pieces: list[tuple[Reply, int]]) -> StepOutput:
        """Prefill one piece; returns the replies whose prompts are complete now, with their last logits."""
        segments, embeds, positions, start = [], [], [], 0
        for reply, count in pieces:
            first, prompt = reply.slot.filled, reply.prompt
            segments.append(Segment(reply.slot, start, start + count, prompt.visible[first : first + count]))
            embeds.append(prompt.embeds[first : first + count])
            positions.append(torch.arange(first, first + count, device=prompt.embeds.device))
            start += count
        weights = pieces[0][0].prompt.weights
        logits = self._forward(
            torch.cat(embeds).unsqueeze(0),
            torch.cat(positions).unsqueeze(0),
            PrefillStep(segments, self._window),
            None if weights is None else weights.bind(self._dtype),
            logits_to_keep=torch.tensor([segment.stop - 1 for segment in segments], device=embeds[0].device),
        )[0]
        finished = []
        for row, (reply, count) in enumerate(pieces):
            reply.slot.filled += count
            if reply.slot.filled == len(reply.prompt):
                finished.append((row, reply))
        for _, reply in finished:
            self.reading.remove(reply)
            self.running.append(reply)
            self._rows_changed = True
        return [reply for _, reply in finished], logits[[row for row, _ in finished]]

    def decode(self) -> StepOutput:
        """One decoding step of all running replies, with the logits of their next tokens."""
        if self._rows_changed:
            self._arrange_rows()
        replies = list(self.running)
        device = self.model.get_input_embeddings().weight.device
        tokens = torch.tensor([[reply.last_token] for reply in replies], device=device)
        positions = torch.tensor([[reply.slot.filled] for reply in replies], device=device)
        step = DecodeStep([reply.slot for reply in replies], self._dtype, self._window)
        logits = self._forward(self.model.get_input_embeddings()(tokens), positions, step, self._weights)[:, 0]
        for reply in replies:
            reply.slot.filled += 1
        return replies, logits

    def _arrange_rows(self) -> None:
        """Sort the rows by slot, and join their perceptual weights."""
        order = {slab: place for place, slab in enumerate(self.slots.slabs)}
        self.running.sort(key=lambda reply: (order[reply.slot.slab], reply.slot.lane))
        self._weights = None  # freed before the new ones are allocated
        joined = join_weights([[] if r.prompt.weights is None else [r.prompt.weights] for r in self.running])
        self._weights = None if joined is None else joined.bind(self._dtype)
        self._rows_changed = False

    def _forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        step: DecodeStep | PrefillStep,
        weights: BoundWeights | None,
        **options: Any,
    ) -> torch.Tensor:
        """Logits `[B, n, V]` of `embeds` `[B, n, d]`."""
        unused = embeds.new_empty(1, 1, 1, 1)  # transformers passes 4D masks through; the step has its own
        return self.model(
            inputs_embeds=embeds,
            attention_mask=unused,
            position_ids=positions,
            use_cache=False,
            perceptual_weights=weights,
            kv_step=step,
            **options,
        ).logits

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype
