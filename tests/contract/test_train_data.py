"""Data set, collator and sampler against the recorded ones. Deviations name their defect."""

import collections
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava import conversation
from llava.conversation import conv_templates
from llava.tokenization import load_tokenizer
from llava.train.data import DataCollatorForSupervisedDataset, LazySupervisedDataset, make_supervised_data_module
from llava.train.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)
from tests.conftest import VECTORS as TEST_VECTORS
from tests.support.pixels import LEVEL, assert_same_pixels

ROOT = TEST_VECTORS / "llava"
RECORDED = {entry["tag"]: entry for entry in json.loads((ROOT / "train" / "dataset.json").read_text())}
RUNS = [entry for entry in RECORDED.values() if "items" in entry]
SAME_IMAGES = {"v1_imse": "v1_pad", "llama2": "v1_square"}  # same records and aspect ratio; stored once
SAMPLERS = [
    json.loads(row) for row in gzip.decompress((ROOT / "train" / "samplers.jsonl.gz").read_bytes()).splitlines()
]
MISC = json.loads((ROOT / "train" / "samplers_misc.json").read_text())


def make_tokenizer(limit: int = 2048, im_start_end: bool = False):
    tokenizer = load_tokenizer(str(ROOT / "assets" / "tokenizer-llama"), model_max_length=limit)
    if im_start_end:
        tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
        tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def make_args(entry: dict, **more) -> SimpleNamespace:
    from transformers import CLIPImageProcessor

    return SimpleNamespace(
        data_path=str(ROOT / entry["data"]),
        image_folder=str(ROOT / "assets" / "images"),
        image_aspect_ratio=entry["image_aspect_ratio"],
        is_multimodal=True,
        image_processor=CLIPImageProcessor.from_pretrained(str(ROOT / "assets" / "towers" / entry["tower"])),
        mm_use_im_start_end=entry["mm_use_im_start_end"],
        **more,
    )


@pytest.mark.parametrize("explicit", [True, False], ids=["template_argument", "process_wide_template"])
@pytest.mark.parametrize("entry", RUNS, ids=lambda entry: entry["tag"])
def test_module(entry: dict, explicit: bool, monkeypatch) -> None:
    conv = conv_templates[entry["template"]]
    monkeypatch.setattr(conversation, "default_conversation", None if explicit else conv)
    tokenizer = make_tokenizer(entry["model_max_length"], entry["mm_use_im_start_end"])
    module = make_supervised_data_module(tokenizer, make_args(entry, **({"conv": conv} if explicit else {})))
    assert sorted(module) == sorted(entry["module_keys"])
    assert module["eval_dataset"] is entry["eval_dataset"]
    dataset = module["train_dataset"]
    assert len(dataset) == entry["length"]
    assert dataset.lengths == entry["lengths"]
    assert dataset.modality_lengths == entry["modality_lengths"]
    images = np.load(ROOT / "train" / "dataset_images.npz")
    items = [dataset[i] for i in range(len(dataset))]
    assert len(items) == len(entry["items"])
    for i, (item, recorded) in enumerate(zip(items, entry["items"])):
        assert sorted(item) == recorded["keys"]
        assert item["input_ids"].tolist() == recorded["input_ids"]
        assert item["labels"].tolist() == recorded["labels"]
        assert list(item["image"].shape) == recorded["image_shape"]
        assert item["image"].dtype == torch.float32
        stored = f"{SAME_IMAGES.get(entry['tag'], entry['tag'])}.image{i}"
        if stored in images:
            assert_same_pixels(item["image"], images[stored], atol=1e-5, level=LEVEL)
        assert bool(item["image"].any()) == ("image" in dataset.list_data_dict[i])
    check_batch(module["data_collator"](items), entry["batch"])


def check_batch(batch: dict, recorded: dict) -> None:
    assert sorted(batch) == recorded["keys"]
    for key in ("input_ids", "labels", "attention_mask"):
        assert batch[key].tolist() == recorded[key], key
    assert str(batch["attention_mask"].dtype) == recorded["attention_mask_dtype"]
    assert list(batch["images"].shape) == recorded["images_shape"]


def test_recorded_images_all_belong_to_a_run() -> None:
    names = np.load(ROOT / "train" / "dataset_images.npz").files
    assert names
    assert {name.split(".")[0] for name in names} <= {entry["tag"] for entry in RUNS}


def test_text_only_run() -> None:
    entry = RECORDED["text_only"]
    args = SimpleNamespace(is_multimodal=False, mm_use_im_start_end=False, conv=conv_templates["v1"])
    tokenizer = make_tokenizer()
    dataset = LazySupervisedDataset(str(ROOT / "train" / "data_text.json"), tokenizer, args)
    assert dataset.lengths == entry["lengths"]
    assert dataset.modality_lengths == entry["modality_lengths"]
    assert sorted(dataset[0]) == entry["item_keys"]
    batch = DataCollatorForSupervisedDataset(tokenizer)([dataset[i] for i in range(len(entry["input_ids"]))])
    assert sorted(batch) == entry["batch_keys"]
    for key in ("input_ids", "labels", "attention_mask"):
        assert batch[key].tolist() == entry[key], key


def test_uneven_images_and_the_cut() -> None:
    entry = RECORDED["uneven_images"]
    tokenizer = make_tokenizer(limit=3)
    instances = [
        {
            "input_ids": torch.tensor([1, 5, 0, 7]),
            "labels": torch.tensor([-100, 5, 0, 7]),
            "image": torch.zeros(3, 2, 2),
        },
        {"input_ids": torch.tensor([1, 9]), "labels": torch.tensor([-100, 9]), "image": torch.zeros(3, 4, 2)},
    ]
    batch = DataCollatorForSupervisedDataset(tokenizer=tokenizer)(instances)
    assert type(batch["images"]).__name__ == entry["images_type"]
    assert batch["input_ids"].tolist() == entry["input_ids"]
    assert batch["labels"].tolist() == entry["labels"]
    # T-3: upstream masks the genuine token 0 of the first row as padding; here only the padding is masked
    assert entry["attention_mask"] == [[1, 1, 0], [1, 1, 0]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, True, False]]


# ---- sampler -----------------------------------------------------------------------------------------------------


def seeded(row: dict) -> torch.Generator | None:
    torch.manual_seed(row["manual_seed"])
    seed = row["generator_seed"]
    return None if seed is None else torch.Generator().manual_seed(seed)


def sampler_defect(row: dict) -> str | None:
    """T-8: upstream orders all-text data by negative lengths. T-9: it draws from the global generator."""
    if row["kind"] == "all_text":
        return "T-8"
    return "T-9" if row["kind"] == "mixed" and row["generator_seed"] is not None else None


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda r: f"{r['kind']}-{r['n']}-{r['batch_size']}x{r['world_size']}")
def test_sampler(row: dict) -> None:
    shape = row["batch_size"], row["world_size"]
    assert get_length_grouped_indices(row["lengths"], *shape, seeded(row)) == row["length_indices"]
    by_modality = get_modality_length_grouped_indices(row["modality_lengths"], *shape, seeded(row))
    if sampler_defect(row) is None:
        assert by_modality == row["modality_indices"]
    elif sampler_defect(row) == "T-8":
        absolute = [abs(length) for length in row["modality_lengths"]]
        assert by_modality == get_length_grouped_indices(absolute, *shape, seeded(row))
    assert_guarantees(by_modality, row["modality_lengths"], *shape)

    # upstream's class always draws from the global generator; handing that one over gives its orders
    seeded(row)
    sampler = LengthGroupedSampler(*shape, row["lengths"], generator=torch.default_generator)
    assert list(sampler) == row["sampler_length"]
    seeded(row)
    sampler = LengthGroupedSampler(*shape, row["modality_lengths"], torch.default_generator, group_by_modality=True)
    order = list(sampler)
    assert len(sampler) == row["n"]
    if sampler_defect(row) != "T-8":
        assert order == row["sampler_modality"]
    assert_guarantees(order, row["modality_lengths"], *shape)


def assert_guarantees(order: list[int], lengths: list[int], batch_size: int, world_size: int) -> None:
    assert sorted(order) == list(range(len(lengths)))
    block = batch_size * world_size
    mixed_from = len(order) - (2 * block if min(lengths) < 0 < max(lengths) else 0)
    for start in range(0, max(mixed_from, 0), block):
        if start + block <= mixed_from:
            assert len({lengths[i] > 0 for i in order[start : start + block]}) == 1


def test_number_of_deviating_sampler_rows() -> None:
    assert collections.Counter(map(sampler_defect, SAMPLERS)) == {None: 60, "T-8": 40, "T-9": 20}


def test_sampler_errors() -> None:
    assert MISC["zero_length_error"]["type"] == "AssertionError"
    with pytest.raises(AssertionError, match=MISC["zero_length_error"]["message"].rstrip(".")):
        get_modality_length_grouped_indices([3, 0, -2], 1, 1)
    assert MISC["none_lengths_error"]["type"] == "ValueError"
    with pytest.raises(ValueError, match=MISC["none_lengths_error"]["message"]):
        LengthGroupedSampler(1, 1)


@pytest.mark.parametrize("row", MISC["even_chunks"])
def test_even_chunks(row: dict) -> None:
    assert split_to_even_chunks(row["indices"], row["lengths"], row["num_chunks"]) == row["chunks"]
