"""The parts of the engine one by one: slots, sampling, the text of a reply, the cache of images."""

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llava.serve.engine.images import EncodedImage, ImageCache, image_key
from llava.serve.engine.kv_slots import CacheGeometry, KVSlots, slot_length
from llava.serve.engine.reply_text import ReplyText, whole_words
from llava.serve.engine.sampling import Sampler, SamplingSettings, choose_tokens
from llava.tokenization import load_tokenizer
from tests.conftest import REPOSITORY, VECTORS

TOKENIZERS = [VECTORS / "llava/assets/tokenizer-llama", VECTORS / "llava/assets/tokenizer-llama-legacy",
              VECTORS / "llava/assets/tokenizer-mpt", REPOSITORY / "playground/bases/tiny-llama"]  # fmt: skip
GEOMETRY = CacheGeometry(2, 4, torch.float32, [torch.device("cpu")] * 3)
TOKEN_BYTES = 2 * 3 * 2 * 4 * 4


# Slots.


def test_slots_are_little_longer_than_needed() -> None:
    for needed in range(1, 5000):
        length = slot_length(needed)
        assert needed <= length
        assert length - needed < max(32, length / 8)
    assert [slot_length(n) for n in (1, 32, 33, 256, 257, 512, 513, 1025)] == [32, 32, 64, 256, 288, 512, 576, 1152]


def test_budget_holds_and_short_requests_take_less() -> None:
    assert GEOMETRY.bytes_per_token == TOKEN_BYTES
    for needed, fits in ((64, 20), (128, 10), (640, 2)):
        slots = KVSlots(GEOMETRY, 1280 * TOKEN_BYTES)
        taken = []
        while (slot := slots.acquire(needed)) is not None:
            taken.append(slot)
            assert slots.used_bytes <= slots.budget
        assert len(taken) == slots.num_used == fits
        assert len({(id(slot.slab), slot.lane) for slot in taken}) == fits
        slots.release(taken[0])
        assert slots.acquire(needed) is not None


def test_idle_slabs_make_room_for_another_length() -> None:
    slots = KVSlots(GEOMETRY, 640 * TOKEN_BYTES)
    short = [slots.acquire(64) for _ in range(10)]
    assert slots.acquire(640) is None
    for slot in short:
        slots.release(slot)
    assert slots.acquire(640).length == 640
    assert slots.acquire(64) is None


def test_longer_lane_is_taken_when_there_is_no_room_for_a_slab() -> None:
    slots = KVSlots(GEOMETRY, 2 * 640 * TOKEN_BYTES)
    first = slots.acquire(640)
    assert slots.acquire(64).slab is first.slab
    assert slots.acquire(64) is None


def test_reserved_bytes_count() -> None:
    slots = KVSlots(GEOMETRY, 128 * TOKEN_BYTES)
    assert slots.acquire(128, reserved=1) is None
    assert slots.acquire(64, reserved=64 * TOKEN_BYTES) is not None


def test_reserved_bytes_count_beside_slabs_that_are_there() -> None:
    """Perceptual weights need room even if there is a free lane already: idle slabs go, or the request waits."""
    slots = KVSlots(GEOMETRY, 640 * TOKEN_BYTES)
    short, long = slots.acquire(32), slots.acquire(320)
    slots.release(short)
    assert slots.used_bytes > 560 * TOKEN_BYTES
    assert slots.acquire(320, reserved=300 * TOKEN_BYTES) is None  # one lane is in use, its slab cannot go
    slots.release(long)
    again = slots.acquire(320, reserved=300 * TOKEN_BYTES)
    assert again is not None
    assert slots.used_bytes + 300 * TOKEN_BYTES <= slots.budget


def test_new_slab_leaves_room_for_what_its_lanes_need_beside_them() -> None:
    slots, own = KVSlots(GEOMETRY, 320 * TOKEN_BYTES), 32 * TOKEN_BYTES
    taken = 0
    while slots.acquire(32, reserved=taken * own, own=own) is not None:
        taken += 1
        assert slots.used_bytes + taken * own <= slots.budget
    assert taken == 5  # 5 x (32 + 32) positions


def test_new_owner_sees_nothing_of_the_old() -> None:
    slots = KVSlots(GEOMETRY, 64 * TOKEN_BYTES)
    slot = slots.acquire(10)
    slot.slab.visible[slot.lane, :5] = True
    slots.release(slot)
    again = slots.acquire(10)
    assert again.filled == 0
    assert not again.slab.visible[again.lane].any()


# Sampling.


def draws(logits: list[float], count: int = 2000, **settings: Any) -> torch.Tensor:
    sampler = Sampler(SamplingSettings(**{"seed": 1, "top_k": 0, **settings}))
    tokens = [choose_tokens(torch.tensor([logits]), [sampler])[0] for _ in range(count)]
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / count


def test_sampling_follows_the_distribution() -> None:
    logits = [1.0, 2.0, 0.0, -1.0, 1.5]
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.tensor(logits).div(temperature).softmax(-1)
        torch.testing.assert_close(draws(logits, temperature=temperature), expected, rtol=0, atol=0.04)


def test_top_k_and_top_p_cut_the_tail() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    logits = probabilities.log().tolist()
    torch.testing.assert_close(draws(logits, top_k=2), torch.tensor([2 / 3, 1 / 3, 0, 0]), rtol=0, atol=0.04)
    # The token that crosses the share still counts.
    torch.testing.assert_close(draws(logits, top_p=0.6), torch.tensor([2 / 3, 1 / 3, 0, 0]), rtol=0, atol=0.04)
    assert draws(logits, top_p=0.0, count=50)[0] == 1
    assert draws(logits, top_k=1, count=50)[0] == 1


def test_rows_are_sampled_by_their_own_settings() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    settings = [
        SamplingSettings(0.0),
        SamplingSettings(1.0, 0.9, 0, 5),
        SamplingSettings(0.0005),
        SamplingSettings(5.0, 1.0, 3, 6),
    ]
    together = choose_tokens(logits, [Sampler(s) for s in settings])
    assert together == [choose_tokens(logits[i : i + 1], [Sampler(s)])[0] for i, s in enumerate(settings)]
    best = logits.argmax(-1).tolist()
    assert [together[0], together[2]] == [best[0], best[2]]


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.9}, {"top_p": 0.3, "top_k": 40}, {"top_p": 0.999, "temperature": 3.0}, {"top_k": 3000}, {}]
)
def test_kept_tokens_are_those_of_transformers(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a row of another kind; `draw` goes through the whole distribution."""
    logits = 3 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    asked = SamplingSettings(**{"top_k": 0, **settings})
    expected = TemperatureLogitsWarper(asked.temperature)(None, logits[:1].clone())
    if asked.top_k:
        expected = TopKLogitsWarper(asked.top_k)(None, expected)
    if asked.top_p < 1:
        expected = TopPLogitsWarper(asked.top_p)(None, expected)
    expected = expected.softmax(-1)[0]
    samplers = [Sampler(asked), Sampler(SamplingSettings(1.0, 0.5, 7))]
    points = torch.linspace(0, 1 - 1e-9, 2001, dtype=torch.float64).tolist()
    seen = torch.zeros(4000)
    for point in points:
        monkeypatch.setattr(samplers[0], "draw", lambda point=point: point)
        seen[choose_tokens(logits, samplers)[0]] += 1 / len(points)
    assert (expected[seen > 0] > 0).all()
    torch.testing.assert_close(seen, expected, rtol=0, atol=1.1e-3)


def test_vocabulary_is_not_sorted_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than a small model's step."""
    sizes: list[int] = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, k, **rest: sizes.append(k) or topk(x, k, **rest))
    logits = 5 * torch.randn(3, 32_000, generator=torch.Generator().manual_seed(0))
    settings = [SamplingSettings(1.0, 1.0, 0), SamplingSettings(1.0, 0.9, 0), SamplingSettings(1.0, 0.9, 50)]
    choose_tokens(logits, [Sampler(one) for one in settings])
    assert sizes == [1024]


# Text.


@pytest.mark.parametrize("folder", TOKENIZERS, ids=lambda folder: folder.name)
def test_growing_text_becomes_the_whole_text(folder: Any) -> None:
    """Half characters are held back, nothing shown is taken back, and the end is what decoding at once gives."""
    tokenizer = load_tokenizer(str(folder))
    for sample in ("The small cat. ", "naïve café ☕ 東京\n\nnew  line", "  spaces \t tabs </s> end", "a" * 50):
        ids = tokenizer(sample, add_special_tokens=False).input_ids
        text, seen = ReplyText(tokenizer), ""
        for token in ids:
            text.add(token)
            assert text.text.startswith(seen)
            assert "�" not in text.text
            seen = text.text
        text.finish()
        assert text.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_half_a_character_at_the_end_is_shown() -> None:
    tokenizer = load_tokenizer(str(TOKENIZERS[0]))
    text = ReplyText(tokenizer)
    ids = tokenizer("☕", add_special_tokens=False).input_ids
    assert len(ids) > 2
    for token in ids[:-1]:
        text.add(token)
    assert text.text == ""
    text.finish()
    assert "�" in text.text


class Letters:
    """A tokenizer whose tokens are the letters of a text."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


def grow(text: str, *stops: str) -> tuple[ReplyText, list[str]]:
    reply, safe = ReplyText(Letters(), stops), []
    for letter in text:
        reply.add(ord(letter))
        safe.append(reply.text[: reply.safe_length])
        if reply.is_stopped:
            break
    return reply, safe


def test_stop_strings() -> None:
    reply, safe = grow("one ##two ###three", "###", "zzz")
    assert reply.is_stopped
    assert reply.text == "one ##two "
    assert all(reply.text.startswith(part) for part in safe)  # nothing of a stop string was ever shown
    assert len(safe) == len("one ##two ###")
    reply, _ = grow("no stop here", "###")
    assert not reply.is_stopped
    assert reply.safe_length == len("no stop here")
    assert grow("ends with ##", "###")[0].safe_length == len("ends with ")
    assert grow("ab", "")[0].text == "ab"
    assert grow("first second", "second", "first")[0].text == ""


def test_stop_string_inside_one_token() -> None:
    class Words(Letters):
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(["Hello", " world</s> and", " more"][i] for i in ids)

    reply = ReplyText(Words(), ["</s>"])
    reply.add(0)
    reply.add(1)
    assert (reply.text, reply.is_stopped) == ("Hello world", True)
    reply.finish()
    assert reply.text == "Hello world"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), ("river", ""), ("river tC", "river "), ("a b ", "a b "), ("one\ntwo", "one\n"), ("one\n", "one\n"),
     ("東京", "東京"), ("a 東", "a 東")],
)  # fmt: skip
def test_whole_words(text: str, shown: str) -> None:
    assert whole_words(text) == shown


# Images.


def encoded(size: int) -> EncodedImage:
    return EncodedImage(torch.zeros(size), None)


def test_image_cache_forgets_the_least_recent() -> None:
    cache, made = ImageCache(budget=100), []

    def get(key: str) -> EncodedImage:
        return cache.get(key, lambda: made.append(key) or encoded(10))

    for key in "ababcab":  # 40 bytes each: two fit
        get(key)
        assert cache.used_bytes <= 100
    assert "".join(made) == "abcab"
    assert (cache.hits, cache.misses) == (2, 5)
    cache.get("large", lambda: encoded(1000))
    assert cache.used_bytes == 80


def test_image_key_is_of_the_content() -> None:
    wide, high = Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))
    assert wide.tobytes() == high.tobytes()
    assert len({image_key(wide), image_key(high), image_key(wide.convert("L"))}) == 3
    assert image_key(wide.copy()) == image_key(wide)
