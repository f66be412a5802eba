"""Data files, bad records, image paths, the collator without a pad token."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from llava.conversation import conv_templates
from llava.tokenization import load_tokenizer
from llava.train.data import (
    BadSampleError,
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    resolve_image_path,
)
from tests.conftest import VECTORS as TEST_VECTORS

ASSETS = TEST_VECTORS / "llava" / "assets"


class Processor:
    """Stands for the image processor: a fixed size, the mean colour of the image as value."""

    def __init__(self):
        self.crop_size = {"height": 4, "width": 4}
        self.image_mean = [0.5, 0.5, 0.5]

    def preprocess(self, image, return_tensors):
        value = image.resize((1, 1)).getpixel((0, 0))[0] / 255
        return {"pixel_values": torch.full((1, 3, 4, 4), value)}


@pytest.fixture
def world(tmp_path: Path):
    """An image folder with one image, and a function that opens a data set of some records."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (6, 3), 255).save(folder / "white.png")
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (3, 3)).save(tmp_path / "outside.png")

    def dataset(records: list, **args) -> LazySupervisedDataset:
        path = tmp_path / "data.json"
        path.write_text(json.dumps(records))
        values = {
            "is_multimodal": True,
            "image_folder": str(folder),
            "image_aspect_ratio": "square",
            "image_processor": Processor(),
            "mm_use_im_start_end": False,
            "conv": conv_templates["v1"],
        }
        tokenizer = load_tokenizer(str(ASSETS / "tokenizer-llama"))
        return LazySupervisedDataset(str(path), tokenizer, SimpleNamespace(**values | args))

    dataset.folder = folder
    return dataset


def record(image: str | None = "white.png", question: str = "<image>\nWhat?", **more) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]
    return {"id": "r", "conversations": turns} | ({"image": image} if image else {}) | more


def test_items(world) -> None:
    dataset = world([record(), record(None, "Hi")])
    assert set(dataset[0]) == {"input_ids", "labels", "image"}
    assert dataset[0]["image"].shape == (3, 4, 4)
    assert dataset[0]["image"].max() == 1
    assert not dataset[-1]["image"].any()
    assert (dataset[0]["input_ids"] == -200).sum() == 1
    assert dataset.lengths == [4 + 128, 3]
    assert dataset.modality_lengths == [4, -3]


def test_padding_takes_the_processors_mean(world) -> None:
    assert world([record()], image_aspect_ratio="pad")[0]["image"].mean() < 1


def test_a_record_may_leave_its_image_unused(world) -> None:
    item = world([record(question="What?")])[0]
    assert -200 not in item["input_ids"]
    assert item["image"].any()


BAD = {
    "missing": (record("gone.png"), "does not exist"),
    "damaged": (record("broken.png"), "not in an image format"),
    "up and out": (record("../outside.png"), "leads out of the image folder"),
    "absolute": (record(os.path.abspath(__file__)), "leads out of the image folder"),
    "list of images": (record(["white.png"]), "not the path of one image"),
    "two markers": (
        record(conversations=[*record()["conversations"], *record()["conversations"]]),
        "occurs 2 times, but the record has one image",
    ),
    "wrong order": (record(conversations=record(question="Hm?")["conversations"][:1] * 2), "must alternate"),
    "speaker": (record(conversations=[{"from": "bot", "value": "x"}]), "unknown speaker 'bot'"),
    "no text": (record(conversations=[{"from": "human"}]), "has to be a list"),
    "no turns": (record(conversations=[]), "has to be a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_one_clear_error(world, name: str) -> None:
    bad, cause = BAD[name]
    with pytest.raises(BadSampleError, match=cause) as caught:
        world([record(), bad])[1]
    message = str(caught.value)
    assert message.startswith("record 1 (id 'r'")
    assert message.endswith(". Repair or remove the record, or train without such records with --on_bad_sample skip.")
    assert ".." not in message.replace("../", "")


def test_too_many_pixels(world) -> None:
    with pytest.raises(BadSampleError, match="6 x 3 pixels, more than the limit of 17"):
        world([record()], max_image_pixels=17)[0]


def test_skipping_takes_the_next_good_sample_of_the_same_modality(world, caplog) -> None:
    records = [record("gone.png"), record(None, "Hi"), record("broken.png"), record(), record(None, "Ho")]
    dataset = world(records, on_bad_sample="skip")
    for _ in range(2):
        assert torch.equal(dataset[0]["input_ids"], dataset[3]["input_ids"])
        assert dataset[2]["image"].any()
    assert not dataset[1]["image"].any()
    assert dataset.bad_samples == {0, 2}
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "Skipped (1 so far in this process)",
        "Skipped (2 so far in this process)",
    ]
    assert "gone.png" in caplog.text


def test_skipping_wraps_around_and_gives_up(world) -> None:
    dataset = world([record(), record("gone.png")], on_bad_sample="skip")
    assert torch.equal(dataset[1]["input_ids"], dataset[0]["input_ids"])
    with pytest.raises(BadSampleError, match="every other one of its kind"):
        world([record("gone.png"), record(None, "Hi")], on_bad_sample="skip")[0]
    with pytest.raises(ValueError, match="use 'error' or 'skip'"):
        world([record()], on_bad_sample="ignore")


def test_a_broken_configuration_is_not_a_bad_sample(world) -> None:
    with pytest.raises(AttributeError):
        world([record()], image_processor=None, on_bad_sample="skip")[0]


def test_image_paths(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (folder / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "alias").symlink_to(folder)
    root = str(folder)
    for name in ("a.png", "sub/../a.png", "./sub/a.png", str(folder / "a.png"), str(tmp_path / "alias" / "a.png")):
        assert os.path.basename(resolve_image_path(root, name)) == "a.png"
    assert resolve_image_path(str(tmp_path / "alias"), "a.png") == str(tmp_path / "alias" / "a.png")
    # `..` is resolved in the text, so a link cannot carry it elsewhere
    assert resolve_image_path(root, "linked/../a.png") == str(folder / "a.png")
    for name in ("../images2/a.png", "/etc/passwd", "sub/../../a.png", str(tmp_path / "images2" / "a.png")):
        with pytest.raises(ValueError, match="leads out of the image folder"):
            resolve_image_path(root, name)
    # data sets are usually linked into the folder
    assert resolve_image_path(root, "linked/a.png") == str(folder / "linked" / "a.png")
    with pytest.raises(ValueError, match="leads out of the image folder"):
        resolve_image_path(root, "linked/a.png", follow_links=False)
    with pytest.raises(ValueError, match="--image_folder"):
        resolve_image_path(None, "a.png")


def test_collator_without_a_pad_token(world) -> None:
    dataset = world([record(), record(None, "Hi")])
    tokenizer = SimpleNamespace(pad_token_id=None, unk_token_id=None, eos_token_id=2, model_max_length=2048)
    batch = DataCollatorForSupervisedDataset(tokenizer)([dataset[0], dataset[1]])
    lengths = [len(dataset[i]["input_ids"]) for i in range(2)]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"].shape == (2, max(lengths))
    assert batch["images"].shape == (2, 3, 4, 4)
