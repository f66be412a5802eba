"""Load for `serving.py`: many streaming requests at once, by our engine or by one `generate` per thread."""

import queue
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TextIteratorStreamer

from llava.model import LlavaLlamaForCausalLM
from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import EngineSettings, GenerationRequest
from llava.serve.engine.sampling import SamplingSettings

GIB = 2**30


@dataclass
class Watch:
    """When the tokens of one reply came, in seconds."""

    asked: float = field(default_factory=time.perf_counter)
    tokens: list[float] = field(default_factory=list)

    def tick(self) -> None:
        self.tokens.append(time.perf_counter())

    @property
    def first(self) -> float:
        return self.tokens[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.tokens, self.tokens[1:])]


Serve = Callable[[list[list[int]], int], list[Watch]]


def engine_settings(max_rows: int, cache_bytes: int, chunk: int) -> EngineSettings:
    return EngineSettings(
        max_rows=max_rows, max_queue=1000, cache_bytes=cache_bytes, image_cache_bytes=0, prefill_chunk=chunk,
        context_length=4096,
    )  # fmt: skip


def endless(model: LlavaLlamaForCausalLM) -> None:
    """Replies end at their limit only, so that all systems make the same tokens."""
    model.generation_config.eos_token_id = []


def serve_by_engine(engine: Engine) -> Serve:
    """All requests to one engine, as the worker's event loop submits them."""

    def serve(prompts: list[list[int]], new_tokens: int) -> list[Watch]:
        watches, ends = [], queue.Queue()
        for prompt in prompts:
            watch = Watch()

            def listen(event: Any, watch: Watch = watch) -> None:
                if event.finish is None:
                    watch.tick()
                else:
                    ends.put(event.error)

            engine.submit(GenerationRequest(prompt, new_tokens, sampling=SamplingSettings(0.0)), listen)
            watches.append(watch)
        errors = [error for _ in prompts if (error := ends.get()) is not None]
        if errors:
            raise errors[0]
        return watches

    return serve


class StampedStreamer(TextIteratorStreamer):
    """The streamer that upstream's worker reads, with the time of each token."""

    def __init__(self, tokenizer: Any, watch: Watch) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
        self.watch = watch

    def put(self, value: torch.Tensor) -> None:
        if value.numel():  # not the empty prompt of a generation from embeddings
            self.watch.tick()
            super().put(value)


def serve_by_threads(model: LlavaLlamaForCausalLM, tokenizer: Any) -> Serve:
    """Upstream's way: for each request a thread that runs `generate`, and one that reads its streamer."""

    def serve(prompts: list[list[int]], new_tokens: int) -> list[Watch]:
        watches, threads = [], []
        for prompt in prompts:
            watch = Watch()
            streamer = StampedStreamer(tokenizer, watch)
            options = {
                "inputs": torch.tensor([prompt], device=model.device), "do_sample": False, "use_cache": True,
                "max_new_tokens": new_tokens, "pad_token_id": 0, "streamer": streamer,
            }  # fmt: skip
            threads += [
                threading.Thread(target=model.generate, kwargs=options),
                threading.Thread(target=lambda streamer=streamer: "".join(streamer)),
            ]
            watches.append(watch)
            for thread in threads[-2:]:
                thread.start()
        for thread in threads:
            thread.join()
        return watches

    return serve


def measure(serve: Serve, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
    """Figures of one burst: all requests arrive at once.

    Raises:
        AssertionError: a reply has another number of tokens than asked for.
    """
    started = time.perf_counter()
    watches = serve(prompts, new_tokens)
    seconds = time.perf_counter() - started
    assert {len(watch.tokens) for watch in watches} == {new_tokens}
    firsts = [watch.first for watch in watches]
    gaps = [gap for watch in watches for gap in watch.gaps]
    return {
        "tokens_per_second": len(prompts) * new_tokens / seconds,
        "first_p50": statistics.median(firsts),
        "first_p95": percentile(firsts, 0.95),
        "gap_p50": statistics.median(gaps),
        "gap_p95": percentile(gaps, 0.95),
    }


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
