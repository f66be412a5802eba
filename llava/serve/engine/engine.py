"""Continuous batching: many requests share every forward of the model, and join and leave between two tokens.

One thread owns the language model and the cache slots. In each round it prefills a bounded piece of waiting prompts,
then generates one token for every running request. Requests wait in FIFO order: one that does not fit yet is not
overtaken. A request with images joins the queue when its images are encoded, which happens in a thread of its own, so
that running replies continue. One limit (`max_rows + max_queue`) covers requests that are parsed, wait and run.

transformers has continuous batching too, but it accepts token ids only, and one set of weights for all rows.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.serve.engine.batch import Batch
from llava.serve.engine.generation import (
    BusyError,
    ContextFullError,
    EngineSettings,
    EngineStoppedError,
    GenerationRequest,
    Reply,
    ReplyEvent,
)
from llava.serve.engine.images import PreparedImage, prepare_image
from llava.serve.engine.metrics import EngineMetrics
from llava.serve.engine.prompts import Prompt, PromptEncoder
from llava.serve.engine.reply_text import ReplyText
from llava.serve.engine.request_queue import RequestQueue
from llava.serve.engine.sampling import Sampler, SamplingSettings, choose_tokens

logger = logging.getLogger(__name__)


class Engine:
    """Generates replies of one model.

    Args:
        model: from `load_pretrained_model`; its attention implementation is replaced by one that reads slots.
        tokenizer, image_processor: from the same call.
        settings: resources and limits.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, image_processor: Any, settings: EngineSettings) -> None:
        self.model, self.tokenizer, self.image_processor, self.settings = model, tokenizer, image_processor, settings
        self.metrics = EngineMetrics()
        self._batch = Batch(model, settings)
        self._end_tokens = _end_tokens(model, tokenizer)
        self._prompts = PromptEncoder(model, settings.image_cache_bytes)
        self._queue = RequestQueue(settings, self._embed, lambda: len(self._batch), self._end)
        self._watch()
        self._thread = threading.Thread(target=self._run, name="llava-engine", daemon=True)
        self._thread.start()

    # Called from other threads.

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Preprocess an image for a request; takes time and memory, and needs no model.

        Raises:
            RequestError: the model takes no images.
        """
        return prepare_image(self.model, self.image_processor, image)

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place in the queue while a request is parsed and its images are decoded.

        Raises:
            BusyError: the queue is full.
        """
        with self._counting_busy(), self._queue.reserve():
            yield

    def submit(self, request: GenerationRequest, listener: Callable[[ReplyEvent], None]) -> Reply:
        """Queue a request.

        Args:
            request: see `GenerationRequest`.
            listener: called for every token and for the end, from the engine's threads; must not block.

        Raises:
            BusyError: the queue is full.
            ContextFullError: `max_new_tokens` is below 1, or the text alone fills the context.
            EngineStoppedError: the engine is closed.
        """
        if request.max_new_tokens < 1:
            raise ContextFullError("max_new_tokens must be 1 or more")
        limit, num_text = self.settings.context_length, len(request.input_ids) - len(request.images)
        if num_text >= limit:  # before a long prompt becomes gigabytes of embeddings
            raise ContextFullError(f"the prompt has {num_text} tokens, and the model's context {limit}")
        text = ReplyText(self.tokenizer, request.stops)
        reply = Reply(request, listener, text, Sampler(request.sampling), time.monotonic())
        with self._counting_busy():
            self._queue.submit(reply)
        return reply

    @contextmanager
    def _counting_busy(self) -> Iterator[None]:
        try:
            yield
        except BusyError:
            self.metrics.requests.labels("busy").inc()
            raise

    def warm_up(self) -> None:
        """Generate two tokens, so that a model that cannot run on this machine fails at the start.

        Raises:
            Exception: the error of the model.
        """
        ended: queue.Queue[ReplyEvent] = queue.Queue()
        token = max(0, self.model.get_input_embeddings().num_embeddings - 1)
        self.submit(GenerationRequest([token, token], 2, sampling=SamplingSettings(0.0)), ended.put)
        while (event := ended.get()).finish is None:
            pass
        if event.error is not None:
            raise event.error

    def cancel(self, reply: Reply) -> None:
        """End a reply at once, even if nothing else happens."""
        reply.cancel()
        self._queue.cancel(reply)

    def close(self) -> None:
        """End every reply with an error, and stop the threads."""
        self._queue.close()
        self._thread.join()
        for reply in [*self._queue.drain(), *self._batch.replies]:
            self._end(reply, "error", EngineStoppedError("the server is stopping"))

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_active(self) -> int:
        """Replies with a slot."""
        return len(self._batch)

    @property
    def num_queued(self) -> int:
        """Requests without a slot, those that are still being parsed included."""
        return len(self._queue)

    @property
    def num_slots_used(self) -> int:
        return self._batch.slots.num_used

    @property
    def cache_bytes_used(self) -> int:
        return self._batch.slots.used_bytes

    def _embed(self, request: GenerationRequest) -> Prompt:
        return self._prompts.encode(request.input_ids, request.images, request.num_visual_tokens)

    # The engine thread.

    def _run(self) -> None:
        with torch.inference_mode():
            while self._queue.wait():
                try:
                    self._round()
                except Exception as error:
                    logger.exception("A step of the engine failed; its replies end.")
                    self._fail_active(error)

    def _round(self) -> None:
        self._drop_cancelled()
        self._admit()
        batch = self._batch
        if batch.reading:
            pieces = batch.next_pieces()
            try:
                self._take_tokens(*batch.read_prompts(pieces))
            except Exception as error:  # most often out of memory; running replies are not affected
                logger.exception("Prompts could not be read; their replies end.")
                for reply, _ in pieces:
                    self._end(reply, "error", error)
        if batch.running:
            self._take_tokens(*batch.decode())
        elif not batch.reading and self._queue.first:  # nothing runs, but the first request does not fit
            raise AssertionError("a request that fits the empty cache was not admitted")

    def _drop_cancelled(self) -> None:
        for reply in self._queue.cancelled():
            self._queue.remove(reply)
            self._end(reply, "cancelled")
        for reply in [r for r in self._batch.replies if r.is_cancelled]:
            self._end(reply, "cancelled")

    def _admit(self) -> None:
        """Give slots to waiting requests in FIFO order."""
        while (reply := self._queue.first) is not None and self.num_active < self.settings.max_rows:
            try:
                if reply.prompt is None:
                    reply.prompt = self._embed(reply.request)
                fits = self._batch.place(reply)
            except Exception as error:
                self._queue.remove(reply)
                self._end(reply, "error", error)
                continue
            if not fits:
                return
            self._queue.remove(reply)
            self.metrics.prompt_tokens.inc(len(reply.prompt))
            self.metrics.visual_tokens.inc(reply.prompt.num_visual_tokens)

    def _take_tokens(self, replies: list[Reply], logits: torch.Tensor) -> None:
        """Append a token to each reply, sampled from its row of `logits` `[B, V]`."""
        tokens = choose_tokens(logits, [reply.sampler for reply in replies])
        are_finite = logits.amax(dim=-1).isfinite().tolist()
        now = time.monotonic()
        self.metrics.count_tokens(sum(are_finite))
        for reply, token, is_finite in zip(replies, tokens, are_finite, strict=True):
            if not is_finite:
                self._end(reply, "error", ArithmeticError("the model returned infinite or undefined numbers"))
                continue
            if reply.num_generated == 0:
                reply.first_token_after = now - reply.arrived
                self.metrics.first_token.observe(reply.first_token_after)
            else:
                self.metrics.between_tokens.observe(now - reply.last_token_at)
            reply.last_token, reply.last_token_at = token, now
            reply.num_generated += 1
            is_end = token in self._end_tokens
            if not is_end:
                reply.text.add(token)
            self._notify(reply, ReplyEvent(reply.text.text, reply.text.safe_length, reply.usage))
            if is_end or reply.text.is_stopped:
                self._end(reply, "stop")
            elif reply.num_generated == reply.max_new_tokens:
                self._end(reply, "length")

    def _end(self, reply: Reply, finish: str, error: Exception | None = None) -> None:
        """Release everything that a reply holds and report its end; once, from either thread."""
        if reply.is_done:
            return
        reply.is_done = True
        if reply.slot is not None:
            self._batch.remove(reply, is_clean=finish in ("stop", "length"))
        self.metrics.requests.labels(finish).inc()
        reply.text.finish()
        text = reply.text.text
        self._notify(reply, ReplyEvent(text, len(text), reply.usage, finish, error))

    def _fail_active(self, error: Exception) -> None:
        for reply in self._batch.replies:
            self._end(reply, "error", error)

    def _notify(self, reply: Reply, event: ReplyEvent) -> None:
        if reply.is_cancelled and event.finish is None:
            return
        try:
            reply.listener(event)
        except Exception:
            logger.exception("The listener of a reply failed; the reply is cancelled.")
            reply.cancel()

    def _watch(self) -> None:
        watch, images = self.metrics.watch, self._prompts.cache
        watch("llava_queued_requests", "Requests that wait for a slot.", lambda: self.num_queued)
        watch("llava_active_requests", "Replies that are read or written now.", lambda: self.num_active)
        watch("llava_cache_bytes", "Bytes of all slabs of keys and values.", lambda: self.cache_bytes_used)
        watch("llava_cache_slots", "Slots in use.", lambda: self.num_slots_used)
        watch("llava_picture_cache_bytes", "Bytes of encoded images.", lambda: images.used_bytes)
        watch("llava_picture_cache_hits", "Images found in the cache.", lambda: images.hits)
        watch("llava_picture_cache_misses", "Images that had to be encoded.", lambda: images.misses)


def _end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id]
    return frozenset(i for i in ids if i is not None)
