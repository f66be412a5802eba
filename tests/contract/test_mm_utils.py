"""Tokens, image pieces, model names and stopping against the recorded results."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llava.mm_utils import (
    KeywordsStoppingCriteria,
    divide_to_patches,
    expand2square,
    get_anyres_image_grid_shape,
    get_model_name_from_path,
    process_anyres_image,
    process_images,
    resize_and_pad_image,
    select_best_resolution,
    tokenizer_image_token,
)
from llava.tokenization import load_tokenizer, tokenize_text
from tests.conftest import VECTORS as TEST_VECTORS
from tests.support.pixels import LEVEL, assert_same_pixels

ROOT = TEST_VECTORS / "llava"
VECTORS = ROOT / "mm_utils"


def load(name: str):
    return json.loads((VECTORS / name).read_text())


TOKENIZERS = load("tokenizers.json")
IMAGE_TOKEN = load("tokenizer_image_token.json")
STOPPING = load("stopping.json")
PROCESS = load("process_images.json")
MISC = load("misc.json")
INDEX = json.loads((ROOT / "assets" / "index.json").read_text())


@functools.cache
def tokenizer_named(name: str):
    tokenizer = load_tokenizer(str(ROOT / "assets" / name.split("+")[0]))
    if name.endswith("+im_tokens"):
        tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
        tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    return tokenizer


@functools.cache
def processor_named(name: str):
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor.from_pretrained(str(ROOT / name))


def open_rgb(path: str) -> Image.Image:
    return Image.open(ROOT / path)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer(name: str) -> None:
    recorded, tokenizer = TOKENIZERS[name], tokenizer_named(name)
    assert len(tokenizer) == recorded["len"]
    assert tokenizer.vocab_size == recorded["vocab_size"]
    assert tokenizer.padding_side == recorded["padding_side"]
    assert getattr(tokenizer, "legacy", None) == recorded["legacy"]
    for role in ("bos", "eos", "pad", "unk"):
        assert getattr(tokenizer, f"{role}_token_id") == recorded[role], role
    for row in recorded["rows"]:
        assert tokenize_text(row["text"], tokenizer) == row["ids"], row["text"]
        assert tokenize_text(row["text"], tokenizer, add_special_tokens=False) == row["ids_no_special"], row["text"]


@pytest.mark.parametrize("name", IMAGE_TOKEN)
def test_tokenizer_image_token(name: str) -> None:
    tokenizer = tokenizer_named(name)
    for row in IMAGE_TOKEN[name]:
        assert tokenizer_image_token(row["prompt"], tokenizer) == row["ids"], row["prompt"]
        assert tokenizer_image_token(row["prompt"], tokenizer, -7) == row["ids_custom_index"], row["prompt"]
        ids = tokenizer_image_token(row["prompt"], tokenizer, return_tensors="pt")
        assert ids.tolist() == row["ids"]
        assert str(ids.dtype) == MISC["pt_dtype"]
        assert ids.dim() == len(MISC["pt_shape"]) == 1


def test_bad_return_tensors() -> None:
    with pytest.raises(ValueError, match=MISC["bad_return_tensors"]["message"]):
        tokenizer_image_token("a", tokenizer_named("tokenizer-llama"), return_tensors="np")


def test_model_names() -> None:
    assert {path: get_model_name_from_path(path) for path in MISC["model_names"]} == MISC["model_names"]
    for path, error in MISC["model_name_errors"].items():
        assert error["type"] == "IndexError"
        with pytest.raises(IndexError):
            get_model_name_from_path(path)


def test_anyres() -> None:
    for row in load("anyres.json")["rows"]:
        size, pinpoints, patch = tuple(row["size"]), row["pinpoints"], row["patch_size"]
        assert list(select_best_resolution(size, pinpoints)) == row["best"]
        assert list(get_anyres_image_grid_shape(size, pinpoints, patch)) == row["grid_shape_list"]
        assert list(get_anyres_image_grid_shape(size, str(pinpoints), patch)) == row["grid_shape_str"]


def test_image_pieces() -> None:
    recorded = np.load(VECTORS / "images_uint8.npz")
    grid = INDEX["grid"]
    made = {}
    for i in range(6):
        image = open_rgb(f"assets/images/img{i}.png")
        made[f"expand2square_{i}"] = expand2square(image, tuple(PROCESS["background"]))
        made[f"resize_and_pad_{i}"] = resize_and_pad_image(image, select_best_resolution(image.size, grid))
    padded = resize_and_pad_image(open_rgb("assets/images/img3.png"), grid[2])
    for side, key in ((INDEX["clip_b"]["image"], "patches_3"), (30, "patches30_3")):
        patches = divide_to_patches(padded, side)
        assert len(patches) == sum(name.startswith(key + "_") for name in recorded)
        made |= {f"{key}_{j}": patch for j, patch in enumerate(patches)}
    assert set(recorded) <= set(made)
    for name in recorded:
        assert_same_pixels(made[name], recorded[name], atol=0, level=1)


@pytest.mark.parametrize("row", PROCESS["rows"], ids=lambda row: row["key"])
def test_process_images(row: dict) -> None:
    recorded = np.load(VECTORS / "process_images.npz")
    images = [open_rgb(path) for path in row["images"]]
    processor, config = processor_named(row["processor"]), SimpleNamespace(**row["config"])
    if row["key"] == "pad_gray":  # P-16: upstream cannot pad a grey image; the rule is that of its RGB conversion
        expected = process_images([images[0].convert("RGB")], processor, config)
        assert torch.equal(process_images(images, processor, config), expected)
        return
    if row["error"]:
        with pytest.raises({"IndexError": IndexError, "RuntimeError": RuntimeError}[row["error"]["type"]]):
            process_images(images, processor, config)
        return
    result = process_images(images, processor, config)
    assert isinstance(result, torch.Tensor) == (row["type"] == "tensor")
    if row["type"] == "tensor":
        assert list(result.shape) == row["shape"]
        assert str(result.dtype) == row["dtype"]
    else:
        assert [list(item.shape) for item in result] == row["shapes"]
    if row["type"] == "list":
        compared = {f"{row['key']}.{i}": item for i, item in enumerate(result)}
    elif row["key"] == "anyres_same":  # only item 0 is stored
        assert torch.equal(result[0], result[1])
        compared = {row["key"]: result[:1]}
    else:
        compared = {row["key"]: result}
    for key, value in compared.items():
        assert_same_pixels(value, recorded[key], atol=1e-5, level=LEVEL)


def test_process_anyres_image_is_one_item_of_process_images() -> None:
    row = next(row for row in PROCESS["rows"] if row["key"] == "anyres_one")
    image, processor = open_rgb(row["images"][0]), processor_named(row["processor"])
    batch = process_images([image], processor, SimpleNamespace(**row["config"]))
    assert torch.equal(process_anyres_image(image, processor, row["config"]["image_grid_pinpoints"]), batch[0])


def test_recorded_arrays_are_all_used() -> None:
    keys = {row["key"] for row in PROCESS["rows"]}
    assert {name.split(".")[0] for name in np.load(VECTORS / "process_images.npz")} <= keys


@pytest.mark.parametrize("row", STOPPING["rows"])
def test_stopping(row: dict) -> None:
    tokenizer = tokenizer_named(row["tokenizer"])
    prompt = tokenizer_image_token(row["prompt"], tokenizer, return_tensors="pt").unsqueeze(0)
    assert prompt.tolist() == [row["prompt_ids"]]
    criteria = KeywordsStoppingCriteria(row["keywords"], tokenizer, prompt)
    assert [ids.tolist() for ids in criteria.keyword_ids] == row["keyword_ids"]
    assert criteria.max_keyword_len == row["max_keyword_len"]
    assert criteria.start_len == row["start_len"]
    new = torch.tensor([row["new_ids"]])
    counts = range(1, new.shape[1] + 1)
    assert [criteria(torch.cat([prompt, new[:, :n]], 1), None) for n in counts] == row["verdicts"]
    # P-12: generation on embeddings shows the new tokens only
    assert [criteria(new[:, :n], None) for n in counts] == row["verdicts"]
    assert criteria(prompt, None) is False
    assert criteria(prompt[:, :0], None) is False


def test_stopping_batch() -> None:
    batch = STOPPING["batch"]
    tokenizer = tokenizer_named("tokenizer-llama")
    prompt = torch.tensor([batch["prompt_ids"]])
    criteria = KeywordsStoppingCriteria(batch["keywords"], tokenizer, prompt)
    for other, verdict in (("a", "verdict_aa"), ("b", "verdict_ab")):
        new = torch.tensor([batch["a"], batch[other]])
        assert criteria(torch.cat([prompt.repeat(2, 1), new], 1), None) is batch[verdict]
        assert criteria(new, None) is batch[verdict]


def test_stopping_in_generate() -> None:
    """The criterion works in transformers' own generation, on ids and on embeddings."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(ROOT / "assets" / "base-llama"), dtype=torch.float32)
    tokenizer = tokenizer_named("tokenizer-llama")
    prompt = tokenizer_image_token("USER: hi ASSISTANT:", tokenizer, return_tensors="pt").unsqueeze(0)
    options = {"do_sample": False, "max_new_tokens": 8, "attention_mask": torch.ones_like(prompt)}
    free = model.generate(prompt, **options)[0, prompt.shape[1] :]
    word = tokenizer.decode(free[2:3])
    criteria = KeywordsStoppingCriteria([word], tokenizer, prompt)
    first = next(n for n in range(1, 9) if criteria(free[None, :n], None))
    stopped = model.generate(prompt, stopping_criteria=[criteria], **options)[0, prompt.shape[1] :]
    assert stopped.tolist() == free[:first].tolist()
    embeds = model.get_input_embeddings()(prompt)
    stopped = model.generate(inputs_embeds=embeds, stopping_criteria=[criteria], **options)[0]
    assert stopped.tolist() == free[:first].tolist()
