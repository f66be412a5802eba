"""The playground: deterministic data in LLaVA's formats, a real tokenizer, base models of the promised sizes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from playground.build_bases import BASES
from playground.make_data import main, make_data
from playground.world.language import (
    CATEGORIES,
    DESCRIBE,
    FACTS,
    SYSTEM_PROMPT,
    Question,
    ask,
    ask_many,
    caption,
    describe,
    vocabulary,
)
from playground.world.render import IMAGE_SIZE, draw_scene
from playground.world.scene import COLORS, PLACES, SHAPES, Item, Scene, sample_scene, sample_split_scene

NUM_TRAIN, NUM_EVAL, TURNS = 120, 20, 6
SCENE = Scene((Item("red", "circle", "left"), Item("blue", "square", "above"), Item("red", "square", "below")), "cat")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes")
    make_data(out, NUM_TRAIN, NUM_EVAL, TURNS, seed=0)
    return out


# ---- world and language


def test_caption_is_canonical() -> None:
    assert caption(SCENE) == "a red circle on the left, a blue square above, a red square below, the word cat."


def test_split_depends_on_content_only() -> None:
    moved = Scene(tuple(Item(i.color, i.shape, i.place, "small") for i in SCENE.items), SCENE.word, corner=3)
    assert moved.held_out() == SCENE.held_out()
    scenes = [sample_scene(random.Random(i)) for i in range(3000)]
    assert 0.07 < sum(s.held_out() for s in scenes) / len(scenes) < 0.13


def answer_by_rule(scene: Scene, q: Question) -> str:
    """A second, slow implementation of every question, by its text alone."""
    words = q.text.rstrip("?").split()
    place = next((p for p in PLACES if p in words), None)
    color = next((c for c in COLORS if c in words), None)
    shape = next((s for s in SHAPES if s in words or f"{s}s" in words), None)
    found = [
        i for i in scene.items if place in (None, i.place) and color in (None, i.color) and shape in (None, i.shape)
    ]
    if q.text == "What word is written?":
        return str(scene.word)
    if q.text == "Is there a word?":
        return "yes" if scene.word else "no"
    if q.text.startswith("How many"):
        return str(len(found))
    if q.text.startswith("Is"):
        return "yes" if found else "no"
    assert len(found) == 1, f"ambiguous: {q.text} about {scene}"
    return {"Where": found[0].place, "color": found[0].color, "shape": found[0].shape}[
        words[0] if words[0] == "Where" else words[1]
    ]


def test_answers_follow_from_the_scene() -> None:
    rng = random.Random(1)
    seen = set()
    for _ in range(500):
        scene = sample_scene(rng)
        for q in ask_many(scene, rng, 12):
            assert q.answer == answer_by_rule(scene, q), (scene, q)
            seen.add(q.category)
    assert seen == set(CATEGORIES)


def test_yes_and_no_are_balanced_in_training() -> None:
    rng = random.Random(2)
    answers = [q.answer for q in (ask(sample_scene(rng), rng, "yesno") for _ in range(6000)) if q]
    assert abs(answers.count("yes") / len(answers) - 0.5) < 0.03


def test_negatives_are_hard() -> None:
    rng = random.Random(3)
    wrong = set()
    for _ in range(200):
        q = ask(SCENE, rng, "yesno")
        if q and q.answer == "no":
            wrong.add(q.text)
    assert "Is there a blue circle?" in wrong  # both words are true of something else


def test_drawing_is_deterministic_and_shows_the_colour() -> None:
    first, second = (draw_scene(SCENE, random.Random(5)) for _ in range(2))
    assert first.tobytes() == second.tobytes() and first.size == (IMAGE_SIZE, IMAGE_SIZE)
    red, green, blue = first.getpixel((17, 48))
    assert red > 180 and green < 90 and blue < 90


# ---- data files


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    make_data(tmp_path, NUM_TRAIN, NUM_EVAL, TURNS, seed=0)
    files = sorted(p.relative_to(data) for p in data.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((data / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_second_run_skips_and_other_parameters_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--out", str(tmp_path / "d"), "--num-train", "12", "--num-eval", "2"]
    for extra, expected in (([], "wrote"), ([], "up to date"), (["--seed", "1"], "wrote")):
        main(args + extra)
        assert capsys.readouterr().out.startswith(expected)
    with pytest.raises(ValueError, match="at least 1"):
        make_data(tmp_path / "e", 0, 1, 1, 0)


@pytest.mark.parametrize("name", ["pretrain.json", "instruct.json"])
def test_llava_format(data: Path, name: str) -> None:
    samples = json.loads((data / name).read_text())
    assert len({s["id"] for s in samples}) == len(samples)
    for sample in samples:
        turns = sample["conversations"]
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2) and turns
        assert all(t["value"].strip() for t in turns)
        marks = [t["value"].count("<image>") for t in turns]
        assert marks == [int("image" in sample)] + [0] * (len(turns) - 1)
        if "image" in sample:
            assert turns[0]["value"].startswith("<image>\n")
            assert Image.open(data / sample["image"]).size == (IMAGE_SIZE, IMAGE_SIZE)
    if name == "pretrain.json":
        assert len(samples) == NUM_TRAIN and all(len(s["conversations"]) == 2 for s in samples)
    else:
        text_only = sum("image" not in s for s in samples) / len(samples)
        assert 0.05 < text_only < 0.15
        assert sum(len(s["conversations"]) for s in samples) / len(samples) > 8


def test_evaluation_files(data: Path) -> None:
    rows, blank = read_lines(data / "eval_questions.jsonl"), read_lines(data / "eval_questions_blank.jsonl")
    assert [r["question_id"] for r in rows] == list(range(len(rows)))
    for category in CATEGORIES:
        answers = [r["answer"] for r in rows if r["category"] == category]
        assert len(answers) == NUM_EVAL and all(len(a.split()) == 1 for a in answers)
        if category == "yesno":
            assert answers.count("yes") == answers.count("no")
    assert [r | {"image": ""} for r in blank] == [r | {"image": ""} for r in rows]
    (gray,) = {r["image"] for r in blank}
    assert len(Image.open(data / gray).getcolors()) == 1


def test_splits_share_no_image_and_no_scene(data: Path) -> None:
    train = {Image.open(p).tobytes() for p in (data / "images").glob("train_*.png")}
    held_out = {Image.open(p).tobytes() for p in (data / "images").glob("eval_*.png")}
    assert len(train) == NUM_TRAIN and held_out and not train & held_out
    rng = random.Random(4)
    first = {sample_split_scene(rng, False).content() for _ in range(2000)}
    second = {sample_split_scene(rng, True).content() for _ in range(300)}
    assert not first & second


# ---- base models


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(BASES / "tiny-llama")


def test_tokenizer_is_llama_like(tokenizer) -> None:
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert type(tokenizer).__name__.startswith("LlamaTokenizer") and len(tokenizer) <= 600
    for word in vocabulary():
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    for text in (SYSTEM_PROMPT, "naïve 猫 été", DESCRIBE, caption(SCENE), *(q for q, _ in FACTS)):
        ids = tokenizer(text).input_ids
        assert ids[0] == 1 and 0 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_pretraining_tokens_are_what_the_tokenizer_gives(tokenizer) -> None:
    from playground.pretraining.language_model import Writer
    from playground.world.tokenizer import load_pieces

    writer = Writer(load_pieces(BASES / "tiny-llama"))
    turns = [("Is there a star?", "no"), ("How many shapes are there?", "3")]
    text = f"{SYSTEM_PROMPT} USER: {turns[0][0]} ASSISTANT: no</s>USER: {turns[1][0]} ASSISTANT: 3</s>"
    assert writer.conversation("", turns).ids == tokenizer(text).input_ids
    scene = describe(SCENE, random.Random(0))
    chunks = [f"{SYSTEM_PROMPT} USER: ", scene, f"\n{turns[0][0]} ASSISTANT: no</s>"]
    ids = [1] + [i for chunk in chunks for i in tokenizer(chunk, add_special_tokens=False).input_ids]
    assert writer.conversation(scene, turns[:1]).ids == ids


def test_bases_load_and_have_the_promised_size() -> None:
    torch = pytest.importorskip("torch")
    from transformers import CLIPImageProcessor, CLIPVisionModel, LlamaForCausalLM

    tower = CLIPVisionModel.from_pretrained(BASES / "tiny-clip")
    processor = CLIPImageProcessor.from_pretrained(BASES / "tiny-clip")
    model = LlamaForCausalLM.from_pretrained(BASES / "tiny-llama")
    assert processor.crop_size["height"] == tower.config.image_size == IMAGE_SIZE
    assert 16 % tower.config.num_attention_heads == 0  # 16 anchors can be shared out among the heads
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == 2
    assert sum(p.stat().st_size for p in BASES.rglob("*") if p.is_file()) < 12 * 2**20


def test_the_tower_is_stored_in_the_published_key_layout() -> None:
    """transformers 4 initialises entries without the prefix at random."""
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(BASES / "tiny-clip/model.safetensors", "pt") as file:
        assert all(key.startswith("vision_model.") for key in file.keys())  # noqa: SIM118


def test_processor_agrees_with_pretraining() -> None:
    torch = pytest.importorskip("torch")
    import numpy as np
    from transformers import CLIPImageProcessor

    from playground.pretraining.vision_tower import to_pixels

    image = draw_scene(SCENE, random.Random(0))
    processor = CLIPImageProcessor.from_pretrained(BASES / "tiny-clip")
    pixels = processor(images=image, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, to_pixels([np.asarray(image)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-llama"])
def test_recorded_scores(name: str) -> None:
    """The model card's numbers come from this file; the thresholds are what the rest of the playground counts on."""
    scores = json.loads((BASES / "scores.json").read_text())[name]["held_out"]
    needed = {"cls_items": 0.95} if name == "tiny-clip" else dict.fromkeys(CATEGORIES, 0.95) | {"count": 0.93}
    assert all(scores[key] >= floor for key, floor in needed.items()), scores


def test_branches_equal_separate_conversations() -> None:
    """Questions that share a description in one sequence get the logits they would get on their own."""
    torch = pytest.importorskip("torch")
    from playground.pretraining.language_model import LanguageRecipe, Writer, build_llama, pad, run
    from playground.world.tokenizer import load_pieces

    writer = Writer(load_pieces(BASES / "tiny-llama"))
    torch.manual_seed(0)
    model = build_llama(LanguageRecipe(), 570).eval()
    scene = describe(SCENE, random.Random(0))
    pairs = [("Is there a star?", "no"), ("How many shapes are there?", "3"), ("Where is the circle?", "left")]
    together = writer.single_turns(scene, pairs)
    with torch.no_grad():
        logits = run(model, *[pad([together])[i] for i in (0, 2)])[0]
        for i, pair in enumerate(pairs):
            alone = writer.conversation(scene, [pair])
            rows = [j for j, b in enumerate(together.branch) if b in (0, i + 1)]
            assert [together.ids[j] for j in rows] == alone.ids
            expected = model(input_ids=torch.tensor([alone.ids])).logits[0]
            torch.testing.assert_close(logits[rows], expected, atol=2e-4, rtol=1e-4)
