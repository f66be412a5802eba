"""Continuous batching: every reply equals the one that the model gives alone, whatever else runs."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.program import RequestError
from llava.serve.engine.batch import Batch
from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import BusyError, ContextFullError, EngineStoppedError, ReplyEvent
from llava.serve.engine.sampling import SamplingSettings
from tests.support.engines import GREEDY, Listener, alone, build, endless, engine, random_image, request

MODELS: dict[str, dict[str, Any]] = {
    "mlp2x_gelu": {},
    "acformer": {"mm_num_visual_tokens": 9, "mm_resampler_depth": 1},
    "vlora": {},
    "vlora every second layer": {"projector": "vlora", "skip_layers": 2},
    "acformer_vlora": {"mm_num_visual_tokens": 9, "mm_resampler_depth": 1},
    "mistral, shared key heads": {"projector": "mlp2x_gelu", "mistral": True, "kv_heads": 2},
    "own key heads": {"projector": "vlora", "kv_heads": 4},
}
TEXT = list(range(300, 330))


def model_of(kind: str) -> Any:
    return build(**{"projector": kind} | MODELS[kind])


def mixed_requests() -> list[Any]:
    """Short and long prompts, none, one and two images, replies of different lengths."""
    a, b = random_image(1), random_image(2)
    return [
        request([1, 300, -200, 301, 302], a, tokens=20),
        request([1, *TEXT], tokens=5),
        request([1, 303, -200, 304, -200, *TEXT[:9]], a, b, tokens=15),
        request([1, 7], tokens=30),
        request([1, 305, -200, 306], b, tokens=1),
        request([1, *TEXT[:3], -200, *TEXT], b, tokens=25),
        request([1, 300, -200, 301, 302], b, tokens=20),
        request([1, 310, 311], tokens=9),
    ]


def replies(running: Engine, requests: list[Any]) -> tuple[list[list[int]], list[ReplyEvent]]:
    """The token ids and the last events of requests that are submitted at once."""
    listeners = [Listener(running, one) for one in requests]
    ends = [listener.last() for listener in listeners]
    return [listener.ids for listener in listeners], ends


@pytest.mark.parametrize("kind", MODELS)
def test_replies_are_those_given_alone(kind: str, llava_vectors: Path) -> None:
    """Three rows for eight requests, so that they join and leave; prompts come in pieces of eight tokens."""
    model = model_of(kind)
    requests = mixed_requests()
    expected = [alone(model, one) for one in requests]
    with engine(model) as running:
        ids, ends = replies(running, requests)
    assert ids == expected
    assert {end.error for end in ends} == {None}
    assert len({tuple(ids) for ids in expected}) > 4  # not all alike


def test_sliding_window(llava_vectors: Path) -> None:
    model = build(mistral=True)
    model.config.sliding_window = 6
    requests = mixed_requests()
    expected = [alone(model, one) for one in requests]
    model.config.sliding_window = None
    assert [alone(model, one) for one in requests] != expected  # it matters here
    model.config.sliding_window = 6
    with engine(model) as running:
        assert replies(running, requests)[0] == expected


def test_every_request_has_its_own_budget(llava_vectors: Path) -> None:
    model = model_of("acformer")
    requests = [request([1, 300, -200, 301], random_image(3), num_visual_tokens=budget) for budget in (5, None, 13, 17)]
    expected = [alone(model, one) for one in requests]
    with engine(model) as running:
        ids, ends = replies(running, requests)
    assert ids == expected
    assert [end.usage.visual_tokens for end in ends] == [5, 9, 13, 17]
    assert [end.usage.prompt_tokens for end in ends] == [8, 12, 16, 20]


def test_one_joins_while_another_runs(llava_vectors: Path) -> None:
    model = model_of("vlora")
    first = request([1, 300, -200, 301], random_image(1), tokens=40)
    second = request([1, 305, -200, 306], random_image(2))
    expected = alone(model, first), alone(model, second)
    with engine(model) as running:
        one = Listener(running, first)
        for _ in range(3):
            assert one.next().finish is None
        two = Listener(running, second)
        two.last()
        one.last()
    assert (one.ids, two.ids) == expected


def test_seed_gives_the_same_reply_alone_and_among_others(llava_vectors: Path) -> None:
    model = build()
    sampled = [request([1, 300], tokens=10, sampling=SamplingSettings(1.0, 0.9, seed=seed)) for seed in (1, 2, 1)]
    with engine(model, max_rows=1) as running:
        apart, _ = replies(running, sampled)
    with engine(model, max_rows=8) as running:
        together = replies(running, [*sampled, *mixed_requests()])[0][:3]
    assert together == apart
    assert together[0] == together[2] != together[1]


def test_stop_string_ends_the_reply(llava_vectors: Path) -> None:
    model = build()
    asked = request([1, 300, 301], tokens=40)
    with engine(model) as running:
        whole = Listener(running, asked).last()
        stop = whole.text[len(whole.text) // 2 :][:3]
        cut = Listener(running, request([1, 300, 301], tokens=40, stops=("never", stop))).last()
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.usage.completion_tokens < whole.usage.completion_tokens


@pytest.mark.parametrize("moment", ["waiting", "reading", "running"])
def test_cancelled_requests_leave_nothing(moment: str, llava_vectors: Path) -> None:
    """In every stage; the engine's slots are checked when it closes."""
    model = endless(build())
    long = request([1, *TEXT, *TEXT, *TEXT], tokens=30)
    with engine(model, max_rows=1, prefill_chunk=1) as running:
        if moment == "waiting":
            runner = Listener(running, request([1, 300], tokens=100))
            cancelled = Listener(running, long)
            running.cancel(cancelled.reply)
            assert cancelled.last().finish == "cancelled"
            runner.last()
        else:
            cancelled = Listener(running, long)
            if moment == "running":
                cancelled.next()
            running.cancel(cancelled.reply)
            assert cancelled.last().finish == "cancelled"
        assert Listener(running, request([1, 300])).last().error is None
        assert running.num_slots_used == 0


def test_prompts_of_waiting_requests_do_not_pile_up(llava_vectors: Path) -> None:
    """They take device memory; requests that are cancelled before leave at once."""
    with engine(endless(build()), max_rows=1) as running:
        runner = Listener(running, request([1, 300], tokens=100))
        runner.next()
        waiting = [Listener(running, request([1, 300, -200], random_image(i), tokens=3)) for i in range(6)]
        running.cancel(waiting[4].reply)
        assert waiting[4].next().finish == "cancelled"
        assert running.num_queued == 5
        piled = []
        while runner.next().finish is None:
            piled.append(sum(one.reply.prompt is not None for one in waiting))
        assert max(piled[10:]) == 1
        assert [one.last().error for one in waiting[:4] + waiting[5:]] == [None] * 5


def test_full_queue_is_busy(llava_vectors: Path) -> None:
    model = endless(build())
    with engine(model, max_rows=1, max_queue=2) as running:
        first = Listener(running, request([1, 300], tokens=100))
        first.next()  # it has left the queue
        waiting = [Listener(running, request([1, 301])) for _ in range(2)]
        with pytest.raises(BusyError, match="busy: 2 requests are waiting"):
            Listener(running, request([1, 302]))
        assert [one.last().error for one in (first, *waiting)] == [None] * 3
        assert Listener(running, request([1, 302])).last().error is None


def test_requests_that_are_parsed_take_a_place(llava_vectors: Path) -> None:
    with engine(build(), max_rows=1, max_queue=1) as running:
        with running.reserve():
            assert running.num_queued == 1
            assert Listener(running, request([1, 300])).last().error is None
            with running.reserve(), pytest.raises(BusyError, match="busy: 2 requests are waiting"):
                Listener(running, request([1, 301]))
        assert running.num_queued == 0


def test_failing_step_ends_its_replies_and_no_others(llava_vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    expected = alone(model, request([1, 301]))
    with engine(model) as running:
        forward, fail = type(model).forward, threading.Event()

        def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
            if fail.is_set():
                fail.clear()
                raise RuntimeError("out of memory")
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "forward", broken)
        victim = Listener(running, request([1, 300, -200], random_image(1), tokens=80))
        victim.next()
        fail.set()
        end = victim.last()
        assert end.finish == "error"
        assert "out of memory" in str(end.error)
        assert running.num_slots_used == 0
        good = Listener(running, request([1, 301]))
        assert good.last().error is None
        assert good.ids == expected


def test_prompt_that_cannot_be_read_ends_alone(llava_vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running replies continue when a prompt runs out of memory."""
    model = endless(build())
    expected = alone(model, request([1, 300], tokens=60))
    forward = Batch._forward

    def broken(self: Any, embeds: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if embeds.shape[1] == 8:  # a whole piece
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, embeds, *args, **kwargs)

    monkeypatch.setattr(Batch, "_forward", broken)
    with engine(model) as running:
        runner = Listener(running, request([1, 300], tokens=60))
        runner.next()
        assert "out of memory" in str(Listener(running, request([1, *TEXT])).last().error)
        assert runner.last().error is None
        assert runner.ids == expected


def test_numbers_that_are_none_end_their_reply_and_reach_no_other(llava_vectors: Path) -> None:
    """Half precision overflows now and then. What a lane holds must not reach its next owner."""
    model = endless(build())
    after = request([1, 305], tokens=10)
    expected = alone(model, after)
    with engine(model) as running, torch.no_grad():
        # As long as the next one, and further on.
        runner = Listener(running, request([1, 300, *TEXT[:20]], tokens=42))
        runner.next()
        model.get_input_embeddings().weight[399] = torch.nan
        end = Listener(running, request([1, 399, *TEXT[:20]], tokens=42)).last()
        assert (end.finish, end.text) == ("error", "")
        assert "undefined" in str(end.error)
        next_owner = Listener(running, replace(after, max_new_tokens=62))
        for _ in range(9):
            next_owner.next()
        assert not runner.reply.is_done
        next_owner.last()
        assert runner.last().error is None
        assert next_owner.ids[:10] == expected


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([1, 300, -200], 0, "1 image marker"),
        ([1, 300], 1, "0 image marker"),
        ([], 0, "empty"),
        ([1, 4000], 0, "not in the model's vocabulary"),
        ([1, -5], 0, "not in the model's vocabulary"),
    ],
)
def test_bad_prompts_are_refused(ids: list[int], images: int, message: str, llava_vectors: Path) -> None:
    with engine(build()) as running:
        end = Listener(running, request(ids, *[random_image(1)] * images)).last()
        assert isinstance(end.error, RequestError)
        assert message in str(end.error)
        assert Listener(running, request([1, 300])).last().error is None


def test_weights_at_the_very_start_are_refused(llava_vectors: Path) -> None:
    with engine(model_of("vlora")) as running:
        end = Listener(running, request([-200, 300], random_image(1))).last()
        assert "begins with an image" in str(end.error)


def test_context_is_counted_with_the_visual_tokens(llava_vectors: Path) -> None:
    """16 visual tokens take the place of one marker."""
    with engine(build(), context_length=24) as running:
        fits = Listener(running, request([1, *TEXT[:6], -200], random_image(1))).last()
        assert (fits.finish, fits.usage.completion_tokens, fits.usage.prompt_tokens) == ("length", 1, 23)
        full = Listener(running, request([1, *TEXT[:7], -200], random_image(1))).last()
        assert isinstance(full.error, ContextFullError)


def test_endless_prompt_is_refused_before_it_becomes_embeddings(
    llava_vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.serve.engine.prompts.embed_prompt", lambda *_: pytest.fail("embedded"))
    with engine(build(), context_length=24) as running:
        for asked in (request([1] * 24), request([1] * 24 + [-200], random_image(1))):
            with pytest.raises(ContextFullError, match="the prompt has 24 tokens, and the model's context 24"):
                Listener(running, asked)


def test_fifo_order_in_a_small_cache(llava_vectors: Path) -> None:
    """Room for one long reply: the short one behind it waits for its turn, and both come."""
    model = endless(build())
    per_token = 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    with engine(model, max_rows=8, cache_bytes=128 * per_token, context_length=512) as running:
        order: list[int] = []

        def tell(number: int) -> Any:
            def listen(event: ReplyEvent) -> None:
                if event.usage.completion_tokens == 1 and event.finish is None:
                    order.append(number)

            return listen

        for number in range(3):
            running.submit(request([1, *TEXT], tokens=90), tell(number))
        last = Listener(running, request([1, 300], tokens=3))
        assert last.last().error is None
        assert order == [0, 1, 2]
        assert running.cache_bytes_used <= 128 * per_token
        too_large = Listener(running, request([1, *TEXT, *TEXT], tokens=90))
        assert "more than the cache" in str(too_large.last().error)


def test_long_prompt_does_not_stall_running_replies(llava_vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a reply runs, at most `prefill_chunk` prompt tokens are read between two of its tokens."""
    model, read = endless(build()), []
    step = Batch._forward

    def spy(self: Batch, embeds: torch.Tensor, positions: torch.Tensor, kv_step: Any, *args: Any, **kw: Any) -> Any:
        read.append((type(kv_step).__name__, embeds.shape[1]))
        return step(self, embeds, positions, kv_step, *args, **kw)

    monkeypatch.setattr(Batch, "_forward", spy)
    with engine(model, prefill_chunk=8) as running:
        runner = Listener(running, request([1, 300], tokens=100))
        runner.next()
        read.clear()
        long = Listener(running, request([1, *TEXT, *TEXT, *TEXT], tokens=3))
        long.next()
        pieces = [size for kind, size in read if kind == "PrefillStep"]
        assert sum(pieces) == 91
        assert max(pieces) == 8
        kinds = [kind for kind, _ in read]
        assert not any(kinds[i : i + 2] == ["PrefillStep"] * 2 for i in range(len(kinds)))  # a token in between
        long.last()
        runner.last()


def test_listener_that_fails_is_not_called_again(llava_vectors: Path) -> None:
    heard = []

    def listen(event: ReplyEvent) -> None:
        heard.append(event)
        raise RuntimeError("the client's loop is closed")

    with engine(endless(build()), max_rows=1) as running:
        running.submit(request([1, 300], tokens=50), listen)
        assert Listener(running, request([1, 301])).last().error is None
        assert len(heard) == 2  # its first token, and that it was cancelled


def test_closing_ends_everything(llava_vectors: Path) -> None:
    with engine(endless(build()), max_rows=1) as running:
        listeners = [Listener(running, request([1, 300, -200], random_image(i), tokens=100)) for i in range(3)]
        listeners[0].next()
    assert all(isinstance(listener.last().error, EngineStoppedError) for listener in listeners)
    assert not running.is_alive
    with pytest.raises(EngineStoppedError):
        running.submit(request([1, 300]), lambda event: None)


def test_images_are_encoded_once(llava_vectors: Path) -> None:
    model = build()
    with engine(model) as running:
        for _ in range(3):
            assert Listener(running, request([1, -200], random_image(1))).last().error is None
        Listener(running, request([1, -200], random_image(2))).last()
        assert (running._prompts.cache.hits, running._prompts.cache.misses) == (2, 2)
        assert running._prompts.cache.used_bytes == 2 * 16 * 32 * 4


def test_learned_part_of_weights_is_kept_once(llava_vectors: Path) -> None:
    """Only what belongs to an image is counted, so only that may be held per image."""
    with engine(model_of("vlora")) as running:
        for number in range(3):
            assert Listener(running, request([1, -200], random_image(number))).last().error is None
        held = [one.weights.outputs["q"].data_ptr() for one in running._prompts.cache._images.values()]
    assert len(held) == 3
    assert len(set(held)) == 1


def test_metrics_count(llava_vectors: Path) -> None:
    from prometheus_client import generate_latest

    with engine(build()) as running:
        end = Listener(running, request([1, 300, -200], random_image(1), tokens=7)).last()
        text = generate_latest(running.metrics.registry).decode()
    assert end.usage.time_to_first_token > 0
    count = end.usage.completion_tokens
    for line in (
        f"llava_generated_tokens_total {count:.1f}",
        "llava_visual_tokens_total 16.0",
        "llava_prompt_tokens_total 18.0",
        "llava_time_to_first_token_seconds_count 1.0",
        f"llava_time_between_tokens_seconds_count {count - 1:.1f}",
        "llava_picture_cache_misses 1.0",
        f"llava_tokens_per_second {count / 10}",
    ):
        assert line in text


def test_generate_still_works_beside_the_engine(llava_vectors: Path) -> None:
    """The attention function leaves every other use of the model as it was."""
    model = build()
    asked = request([1, 300, -200, 301], random_image(1))
    before = alone(model, asked)
    with engine(model):
        assert alone(model, asked) == before


def test_greedy_settings() -> None:
    assert GREEDY.is_greedy
    assert SamplingSettings(temperature=0.001).is_greedy
    assert not SamplingSettings(temperature=0.0011).is_greedy
