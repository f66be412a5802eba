"""Continuous batching: many requests share every forward of the model, and join and leave between two tokens.

One thread owns the model's language part and the slots of keys and values. In each round it reads a bounded piece of
waiting prompts, then makes one token for every running request. Requests are served in the order in which they are
ready (a picture must be encoded first): one that does not fit yet is not overtaken. Pictures are encoded in a thread
of their own, so running replies go on.

transformers has continuous batching too, but it takes token ids only, and one set of weights for all rows.
"""

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
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
from llava.serve.engine.image_cache import PictureCache
from llava.serve.engine.metrics import EngineMetrics
from llava.serve.engine.prompts import (
    EncodedPicture,
    PreparedPicture,
    Prompt,
    build_prompt,
    encode_picture,
    prepare_picture,
)
from llava.serve.engine.reply_text import ReplyText
from llava.serve.engine.sampling import Sampler, SamplingSettings, choose_tokens

logger = logging.getLogger(__name__)


class Engine:
    """Runs replies of one model.

    Args:
        model: opened by `load_pretrained_model`; its attention is set to one that can read slots.
        tokenizer, image_processor: of the same.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, image_processor: Any, settings: EngineSettings) -> None:
        self.model, self.tokenizer, self.image_processor, self.settings = model, tokenizer, image_processor, settings
        self.pictures = PictureCache(settings.picture_cache_bytes)
        self.metrics = EngineMetrics()
        self._batch = Batch(model, settings)
        self._end_tokens = _end_tokens(model, tokenizer)
        self._encoding: dict[Reply, Future[None]] = {}  # their pictures are in the encoder's queue
        self._encoded: set[Reply] = set()  # prompts with pictures that wait for a slot
        self._incoming: deque[Reply] = deque()  # ready for the engine's thread
        self._waiting: deque[Reply] = deque()
        self._learned: dict[str, torch.Tensor] | None = None  # outputs of perceptual weights
        self._num_queued = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._watch()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="llava-encoder")
        self._thread = threading.Thread(target=self._run, name="llava-engine", daemon=True)
        self._thread.start()

    # What other threads call.

    def prepare(self, picture: Image.Image) -> PreparedPicture:
        """A picture for a request. Takes some time, and for a large picture some memory: not while the request waits.

        Raises:
            RequestError: the model takes no pictures.
        """
        return prepare_picture(self.model, self.image_processor, picture)

    def check_room(self) -> None:
        """
        Raises:
            BusyError: the queue is full.
        """
        if self._num_queued + self.num_active >= self.settings.max_rows + self.settings.max_queue:
            self.metrics.requests.labels("busy").inc()
            raise BusyError(f"the server is busy: {self._num_queued} requests are waiting; try again in a moment")

    def submit(self, request: GenerationRequest, listener: Callable[[ReplyEvent], None]) -> Reply:
        """Start a reply. `listener` hears of every token and of the end, from the engine's threads; it must not wait.

        Raises:
            BusyError: the queue is full.
            ContextFullError: `max_new_tokens` is below 1, or the text alone fills the context.
            EngineStoppedError: the engine is closed.
        """
        if request.max_new_tokens < 1:
            raise ContextFullError("max_new_tokens must be 1 or more")
        limit, num_text = self.settings.context_length, len(request.input_ids) - len(request.pictures)
        if num_text >= limit:  # before a long prompt becomes gigabytes of embeddings
            raise ContextFullError(f"the prompt has {num_text} tokens, and the model's context {limit}")
        text = ReplyText(self.tokenizer, request.stops)
        reply = Reply(request, listener, text, Sampler(request.sampling), time.monotonic())
        with self._changed:
            if self._is_closed:
                raise EngineStoppedError("the server is stopping")
            self.check_room()
            self._num_queued += 1
            if request.pictures:
                self._encoding[reply] = self._encoder.submit(self._encode, reply)
            else:
                self._incoming.append(reply)
                self._changed.notify_all()
        return reply

    def warm_up(self) -> None:
        """Make two tokens, so that what cannot run on this machine is found before a user finds it.

        Raises:
            Exception: whatever failed.
        """
        ended: queue.Queue[ReplyEvent] = queue.Queue()
        token = max(0, self.model.get_input_embeddings().num_embeddings - 1)
        self.submit(GenerationRequest([token, token], 2, sampling=SamplingSettings(0.0)), ended.put)
        while (event := ended.get()).finish is None:
            pass
        if event.error is not None:
            raise event.error

    def cancel(self, reply: Reply) -> None:
        """`reply.cancel()`, and see to it at once even if nothing else happens."""
        reply.cancel()
        with self._changed:
            was_encoding = self._encoding.get(reply)
            is_out = was_encoding is not None and was_encoding.cancel()  # its turn had not come
            if is_out:
                del self._encoding[reply]
                self._num_queued -= 1
            self._changed.notify_all()
        if is_out:
            self._end(reply, "cancelled")

    def close(self) -> None:
        """End every reply with an error and the threads with them."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._encoder.shutdown(cancel_futures=True)
        with self._changed:
            left = [*self._encoding, *self._incoming, *self._waiting, *self._batch.replies]
            for replies in (self._encoding, self._encoded, self._incoming, self._waiting):
                replies.clear()
            self._num_queued = 0
        for reply in left:
            self._end(reply, "error", EngineStoppedError("the server is stopping"))

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_active(self) -> int:
        """Replies that have a slot."""
        return len(self._batch)

    @property
    def num_queued(self) -> int:
        """Requests without a slot yet."""
        return self._num_queued

    @property
    def num_slots_used(self) -> int:
        return self._batch.slots.num_used

    @property
    def cache_bytes_used(self) -> int:
        return self._batch.slots.used_bytes

    # The encoder's thread.

    def _encode(self, reply: Reply) -> None:
        """Make the prompt of one request, not far ahead of the slots: prompts take memory of the device."""
        with self._changed:
            while len(self._encoded) >= self.settings.max_rows and not (self._is_closed or reply.is_cancelled):
                self._changed.wait()
            if self._is_closed:
                return  # `close` ends it
        error = None
        try:
            if not reply.is_cancelled:
                reply.prompt = self._build_prompt(reply.request)
        except Exception as caught:
            error = caught
        with self._changed:
            del self._encoding[reply]
            if error is None:
                self._encoded.add(reply)
                self._incoming.append(reply)
                self._changed.notify_all()
            else:
                self._num_queued -= 1
        if error is not None:
            self._end(reply, "error", error)

    def _build_prompt(self, request: GenerationRequest) -> Prompt:
        budget = request.num_visual_tokens
        encoded = [
            self.pictures.get((picture.key, budget), lambda picture=picture: self._encode_picture(picture, budget))
            for picture in request.pictures
        ]
        return build_prompt(self.model, request.input_ids, encoded)

    def _encode_picture(self, picture: PreparedPicture, budget: int | None) -> EncodedPicture:
        encoded = encode_picture(self.model, picture, budget)
        if encoded.weights is None:
            return encoded
        # The connector computes the learned part anew for each picture. It is the same for all, so one is kept.
        self._learned = self._learned or encoded.weights.outputs
        return replace(encoded, weights=encoded.weights._replace(outputs=self._learned))

    # The engine's thread.

    def _run(self) -> None:
        with torch.inference_mode():
            while self._take_incoming():
                try:
                    self._round()
                except Exception as error:
                    logger.exception("A step of the engine failed; its replies end")
                    self._fail_active(error)

    def _take_incoming(self) -> bool:
        """Wait for work; False when the engine is closed."""
        with self._changed:
            while not (self._is_closed or self._incoming or self._waiting or self._batch.replies):
                self._changed.wait()
            self._waiting.extend(self._incoming)
            self._incoming.clear()
            return not self._is_closed

    def _round(self) -> None:
        self._drop_cancelled()
        self._admit()
        batch = self._batch
        if batch.reading:
            pieces = batch.next_pieces()
            try:
                self._take_tokens(*batch.read_prompts(pieces))
            except Exception as error:  # most often a lack of memory; the running replies have lost nothing
                logger.exception("Prompts could not be read; their replies end")
                for reply, _ in pieces:
                    self._end(reply, "error", error)
        if batch.running:
            self._take_tokens(*batch.decode())
        elif not batch.reading and self._waiting:  # nothing runs, and yet the first one does not fit
            raise AssertionError("a request that fits the empty cache was not admitted")

    def _drop_cancelled(self) -> None:
        for reply in [r for r in self._waiting if r.is_cancelled]:
            self._waiting.remove(reply)
            self._leave_queue(reply)
            self._end(reply, "cancelled")
        for reply in [r for r in self._batch.replies if r.is_cancelled]:
            self._end(reply, "cancelled")

    def _admit(self) -> None:
        """Give slots to those who wait, first come, first served."""
        while self._waiting and self.num_active < self.settings.max_rows:
            reply = self._waiting[0]
            try:
                if reply.prompt is None:
                    reply.prompt = self._build_prompt(reply.request)
                fits = self._batch.place(reply)
            except Exception as error:
                self._waiting.popleft()
                self._leave_queue(reply)
                self._end(reply, "error", error)
                continue
            if not fits:
                return
            self._waiting.popleft()
            self._leave_queue(reply)
            self.metrics.prompt_tokens.inc(len(reply.prompt))
            self.metrics.visual_tokens.inc(reply.prompt.num_visual_tokens)

    def _take_tokens(self, replies: list[Reply], logits: torch.Tensor) -> None:
        """A token for each reply, from its row of `logits` `[B, V]`."""
        tokens = choose_tokens(logits, [reply.sampler for reply in replies])
        are_numbers = logits.amax(dim=-1).isfinite().tolist()
        now = time.monotonic()
        self.metrics.count_tokens(sum(are_numbers))
        for reply, token, is_number in zip(replies, tokens, are_numbers, strict=True):
            if not is_number:
                self._end(reply, "error", ArithmeticError("the model gave infinite or undefined numbers"))
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
            self._tell(reply, ReplyEvent(reply.text.text, reply.text.safe_length, reply.usage))
            if is_end or reply.text.is_stopped:
                self._end(reply, "stop")
            elif reply.num_generated == reply.max_new_tokens:
                self._end(reply, "length")

    def _end(self, reply: Reply, finish: str, error: Exception | None = None) -> None:
        """Free everything that a reply holds and say that it is over. Once; from either thread."""
        if reply.is_done:
            return
        reply.is_done = True
        if reply.slot is not None:
            self._batch.remove(reply, is_clean=finish in ("stop", "length"))
        self.metrics.requests.labels(finish).inc()
        reply.text.finish()
        text = reply.text.text
        self._tell(reply, ReplyEvent(text, len(text), reply.usage, finish, error))

    def _fail_active(self, error: Exception) -> None:
        for reply in self._batch.replies:
            self._end(reply, "error", error)

    def _tell(self, reply: Reply, event: ReplyEvent) -> None:
        if reply.is_cancelled and event.finish is None:
            return
        try:
            reply.listener(event)
        except Exception:
            logger.exception("Nobody hears of a reply any more; it is cancelled")
            reply.cancel()

    def _leave_queue(self, reply: Reply) -> None:
        with self._changed:
            self._num_queued -= 1
            self._encoded.discard(reply)
            self._changed.notify_all()

    def _watch(self) -> None:
        watch = self.metrics.watch
        watch("llava_queued_requests", "Requests that wait for a slot.", lambda: self.num_queued)
        watch("llava_active_requests", "Replies that are read or written now.", lambda: self.num_active)
        watch("llava_cache_bytes", "Bytes of all slabs of keys and values.", lambda: self.cache_bytes_used)
        watch("llava_cache_slots", "Slots in use.", lambda: self.num_slots_used)
        watch("llava_picture_cache_bytes", "Bytes of encoded pictures.", lambda: self.pictures.used_bytes)
        watch("llava_picture_cache_hits", "Pictures found in the cache.", lambda: self.pictures.hits)
        watch("llava_picture_cache_misses", "Pictures that had to be encoded.", lambda: self.pictures.misses)


def _end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    stated = model.generation_config.eos_token_id
    ids = stated if isinstance(stated, list) else [stated, tokenizer.eos_token_id]
    return frozenset(itertools.filterfalse(lambda i: i is None, ids))
