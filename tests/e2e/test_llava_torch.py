"""The LLaVA of February 2024 with our connectors in it: its own programs train, answer and serve as ours do.

It runs under transformers 4.37 in .venv-llava-torch, an environment on top of the one that runs the tests. The first
run creates it (tests/llava_torch/setup.sh, about 120 MB and 5 seconds).
"""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

from llava.chat import build_prompt
from llava.eval import model_vqa_loader
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_projector.registry import CONNECTORS
from llava.tokenization import load_tokenizer
from llava.tokenizer_files import save_tokenizer
from llava.train import vision_setup
from playground.make_data import make_data
from tests.conftest import REPOSITORY
from tests.support.old_llava import copy_code, run_jobs
from tests.support.training import losses_of, run_training

pytestmark = pytest.mark.e2e

LLM, CLIP = str(REPOSITORY / "playground/bases/tiny-llama"), str(REPOSITORY / "playground/bases/tiny-clip")
NAMES = [*sorted(CONNECTORS.keys() - {"linear", "identity", "mlp<k>x_gelu"}), "mlp2x_gelu"]
TOKENS = {"mm_num_visual_tokens": 17, "mm_resampler_depth": 1, "mm_resampler_heads": 4, "mm_resampler_dim_head": 16}
WEIGHTS = {"vlora_dim": 32, "vlora_heads": 4, "vlora_depth": 1, "vlora_rank": 4, "vlora_type": "qkvom"}
SETTINGS = TOKENS | WEIGHTS | {"mm_abstractor_depth": 1}
# Token ids with no, one and two images.
ROWS = [[1, 300, -200, 13, 301, 302], [1, 305, 306, 307], [1, 310, -200, 311, -200, 312, 313]]
STEPS = 8
STAGES = {
    "acformer-stage1": ["--tune_mm_mlp_adapter", "True", "--version", "plain"],
    "acformer-stage2": ["--version", "v1", "--image_aspect_ratio", "pad"],
    "vlora-stage2": ["--version", "v1", "--gradient_checkpointing", "True"],
    "acformer_vlora-lora": ["--version", "v1", "--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8"],
}


def build(name: str) -> LlavaLlamaForCausalLM:
    """The playground's language model with a new connector; learned weights of images are not zero."""
    torch.manual_seed(0)
    model = LlavaLlamaForCausalLM.from_pretrained(LLM, dtype=torch.float32)
    flags = SETTINGS | ({"mm_num_visual_tokens": 16} if name == "pixel_shuffle" else {})
    model.get_model().initialize_vision_modules(
        SimpleNamespace(
            vision_tower=CLIP, mm_projector_type=name, mm_vision_select_layer=-2, mm_vision_select_feature="patch",
            mm_patch_merge_type="flat", **flags,
        )
    )  # fmt: skip
    for key, parameter in model.model.mm_projector.named_parameters():
        if "Bs" in key.split("."):
            torch.nn.init.normal_(parameter, std=0.1)
    model.config.mm_use_im_start_end = model.config.mm_use_im_patch_token = False
    return model.eval()


def answers(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `logits` in tests/llava_torch/jobs.py records, by our model."""
    model.generation_config.eos_token_id = None
    results, used = {}, 0
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    with torch.no_grad():
        for number, row in enumerate(ROWS):
            ids, count = torch.tensor([row]), max(row.count(-200), 1)
            own = images[used : used + count]
            used += count
            results[f"logits{number}"] = model(ids, images=own).logits
            results[f"greedy{number}"] = model.generate(ids, images=own, **options)
            results[f"beams{number}"] = model.generate(ids, images=own, num_beams=3, **options)
        batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ROWS], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in ROWS], batch_first=True).long()
        labels = batch.masked_fill(mask == 0, -100)
        results["loss"] = model(batch, attention_mask=mask, labels=labels, images=images).loss
    return results


def load(path: Path | str) -> Any:
    return torch.load(path, weights_only=True)


def assert_same(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], name: str) -> None:
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        if value.is_floating_point():
            assert (theirs[key] - value).abs().max() <= 1e-5 * value.abs().max(), (name, key)
        else:
            assert theirs[key].tolist() == value.tolist(), (name, key)


def write_data(folder: Path) -> list[dict[str, Any]]:
    """Images of the playground, and questions about the training images. Returns the questions.

    Training has eight records, so that a batch of eight is always all of them, in whatever order; in stage 2 the last
    has no image.
    """
    make_data(folder, num_train=8, num_eval=1, turns=2, seed=0)
    captions, talks = (json.loads((folder / f"{name}.json").read_text()) for name in ("pretrain", "instruct"))
    with_image = [record for record in talks if "image" in record]
    without = [record for record in talks if "image" not in record]
    (folder / "stage1.json").write_text(json.dumps(captions[:8]))
    (folder / "stage2.json").write_text(json.dumps([*with_image[:7], *without[:1]]))
    questions = []
    for number, record in enumerate(with_image[:7]):
        human, gpt = (turn["value"] for turn in record["conversations"][:2])
        text = human.replace("<image>", "").strip().splitlines()[0]  # one line, for the chat
        questions.append({"question_id": number, "image": record["image"], "text": text, "answer": gpt})
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return questions


def training_flags(data: Path, run: str, initial: str) -> list[str]:
    connector, mode = run.split("-")
    own = {"acformer": TOKENS, "vlora": WEIGHTS}.get(connector, TOKENS | WEIGHTS)
    flags = {
        "--model_name_or_path": LLM, "--vision_tower": CLIP, "--mm_projector_type": connector,
        "--mm_vision_select_layer": "-2", "--mm_use_im_start_end": "False", "--mm_use_im_patch_token": "False",
        "--data_path": str(data / f"{'stage1' if mode == 'stage1' else 'stage2'}.json"), "--image_folder": str(data),
        "--per_device_train_batch_size": "8", "--max_steps": str(STEPS), "--logging_steps": "1",
        "--learning_rate": "1e-3" if connector == "acformer" else "2e-3", "--lr_scheduler_type": "cosine",
        "--warmup_ratio": "0.03", "--weight_decay": "0.", "--save_strategy": "no", "--report_to": "none",
        "--model_max_length": "256", "--dataloader_num_workers": "0", "--pretrain_mm_mlp_adapter": initial,
        **{f"--{key}": str(value) for key, value in own.items()},
    }  # fmt: skip
    return [part for pair in flags.items() for part in pair] + STAGES[run]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the old LLaVA has done everything that the tests look at, in one process."""
    work = tmp_path_factory.mktemp("old")
    code = copy_code(work / "code")
    copy_code(work / "pristine", with_connectors=False)
    torch.manual_seed(1)
    torch.save(torch.randn(4, 3, 96, 96), work / "images.pt")
    for name in NAMES:
        model = build(name)
        model.save_pretrained(work / f"llava-{name}")
        save_tokenizer(load_tokenizer(LLM), str(work / f"llava-{name}"))
        state = model.model.mm_projector.state_dict()
        torch.save({f"model.mm_projector.{key}": value for key, value in state.items()}, work / f"{name}.bin")
    first, second = write_data(work)[:2]

    def logits(model: str) -> dict[str, Any]:
        return {"do": "logits", "model": model, "rows": ROWS, "images": "images.pt", "out": f"{model}.pt"}

    def training(run: str, initial: str) -> dict[str, Any]:
        flags = [*training_flags(work, run, initial), "--output_dir", f"llava-{run}"]
        return {"do": "program", "file": f"{code}/llava/train/train.py", "arguments": flags, "out": f"{run}.txt"}

    stage2 = "llava-acformer-stage2"
    ask = ["--model-path", stage2, "--question-file", "questions.jsonl", "--image-folder", str(work), "--answers-file",
           str(work / "answers.jsonl"), "--conv-mode", "vicuna_v1", "--temperature", "0"]  # fmt: skip
    chat = [
        "--model-path",
        "llava-vlora-stage2",
        "--image-file",
        second["image"],
        "--device",
        "cpu",
        "--temperature",
        "0",
    ]
    chat += ["--conv-mode", "vicuna_v1"]
    image = base64.b64encode((work / first["image"]).read_bytes()).decode()
    request = {"prompt": prompt(first), "images": [image], "temperature": 0, "max_new_tokens": 8, "stop": "</s>"}
    jobs = [
        *(logits(f"llava-{name}") for name in NAMES),
        training("acformer-stage1", "acformer.bin"),
        training("acformer-stage2", "llava-acformer-stage1/mm_projector.bin"),
        training("vlora-stage2", "vlora.bin"),
        training("acformer_vlora-lora", "acformer_vlora.bin"),
        logits(stage2),
        logits("llava-vlora-stage2"),
        {"do": "program", "file": f"{code}/llava/eval/model_vqa_loader.py", "arguments": ask, "out": "loader.txt"},
        {"do": "program", "file": f"{code}/llava/serve/cli.py", "arguments": chat, "out": "cli.txt",
         "stdin": f"{second['text']}\n\n"},
        {"do": "reload", "model": "llava-acformer_vlora-lora", "base": LLM, "out": "llava-merged"},
        {"do": "worker", "model": "llava-vlora-stage2", "request": request, "out": "frames.json"},
    ]  # fmt: skip
    run_jobs(code, jobs, work)
    return work


@pytest.mark.parametrize("name", NAMES)
def test_every_connector_answers_as_ours(work: Path, name: str) -> None:
    _, model, _, _ = load_pretrained_model(
        str(work / f"llava-{name}"), None, f"llava-{name}", device="cpu", dtype=torch.float32
    )
    assert_same(
        load(work / f"llava-{name}.pt"),
        answers(model, load(work / "images.pt")),
        name,
    )


def test_models_without_our_connectors_are_untouched(work: Path, tmp_path: Path) -> None:
    """Bit for bit: the projector of LLaVA-1.5 in the code with and without connectors."""
    model = work / "llava-mlp2x_gelu"
    job = {"do": "logits", "model": str(model), "rows": ROWS, "images": str(work / "images.pt"), "out": "plain.pt"}
    run_jobs(work / "pristine", [job], tmp_path)
    plain, grafted = load(tmp_path / "plain.pt"), load(f"{model}.pt")
    assert all(torch.equal(plain[key], grafted[key]) for key in plain)


def recorded_losses(work: Path, run: str) -> list[float]:
    log = json.loads((work / f"llava-{run}/trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == STEPS and losses[-1] < 0.8 * losses[0]
    return losses


@pytest.mark.parametrize("run", ["acformer-stage1", "acformer-stage2", "vlora-stage2"])
def test_training_follows_ours(work: Path, tmp_path: Path, run: str) -> None:
    connector = run.split("-")[0]
    stage1 = work / "llava-acformer-stage1/mm_projector.bin"
    initial = stage1 if run == "acformer-stage2" else work / f"{connector}.bin"
    with mock.patch.object(vision_setup, "tower_dtype", lambda *_: torch.float16):  # theirs, also on a CPU
        trainer = run_training(tmp_path / "llava-ours", *training_flags(work, run, str(initial)))
    assert recorded_losses(work, run) == pytest.approx(losses_of(trainer), abs=2e-3)
    config = json.loads((work / f"llava-{run}/config.json").read_text())
    ours = trainer.model.config.to_dict()
    names = [name for name in ours if name.startswith(("mm_", "vlora", "skip_", "weights_"))]
    assert {name: config.get(name) for name in names} == {name: ours[name] for name in names}


@pytest.mark.parametrize("run", ["acformer-stage2", "vlora-stage2"])
def test_our_package_opens_what_it_trained(work: Path, run: str) -> None:
    path = str(work / f"llava-{run}")
    _, model, _, _ = load_pretrained_model(path, None, f"llava-{run}", device="cpu", dtype=torch.float32)
    assert_same(
        load(f"{path}.pt"),
        answers(model, load(work / "images.pt")),
        run,
    )


def test_lora_opens_in_both(work: Path) -> None:
    """Their loader has merged the adapters and saved the model in half precision; ours opens both."""
    recorded_losses(work, "acformer_vlora-lora")  # adapters start at random: the curves differ
    lora = str(work / "llava-acformer_vlora-lora")
    _, model, _, _ = load_pretrained_model(lora, LLM, "llava-lora", device="cpu", dtype=torch.float32)
    merged = LlavaLlamaForCausalLM.from_pretrained(work / "llava-merged", dtype=torch.float32)
    theirs = dict(merged.named_parameters())
    for name, parameter in model.named_parameters():
        if "vision_tower" not in name:
            torch.testing.assert_close(theirs[name], parameter, atol=1e-3, rtol=1e-3, msg=name)


def test_its_programs_answer(work: Path) -> None:
    """The loader of benchmarks, the chat on the command line and the model worker, on models it trained."""
    questions = [json.loads(line) for line in (work / "questions.jsonl").read_text().splitlines()]
    replies = [json.loads(line)["text"] for line in (work / "answers.jsonl").read_text().splitlines()]
    arguments = [
        "--model-path", str(work / "llava-acformer-stage2"), "--question-file", str(work / "questions.jsonl"),
        "--image-folder", str(work), "--answers-file", str(work / "ours.jsonl"), "--conv-mode", "vicuna_v1",
        "--temperature", "0",
    ]  # fmt: skip
    model_vqa_loader.eval_model(model_vqa_loader.build_parser().parse_args(arguments), num_workers=0)
    assert [json.loads(line)["text"] for line in (work / "ours.jsonl").read_text().splitlines()] == replies
    assert all(replies)

    frames = json.loads((work / "frames.json").read_text())
    assert frames[-1]["error_code"] == 0
    assert frames[-1]["text"].removeprefix(prompt(questions[0])).strip() == our_reply(work, questions[0])
    assert f"ASSISTANT: {our_reply(work, questions[1])}\n" in (work / "cli.txt").read_text()


def prompt(question: dict[str, Any]) -> str:
    return build_prompt(f"<image>\n{question['text']}", "vicuna_v1")


def our_reply(work: Path, question: dict[str, Any]) -> str:
    """Our reply of the model that the chat and the worker had, in its precision."""
    path = str(work / "llava-vlora-stage2")
    tokenizer, model, processor, _ = load_pretrained_model(path, None, "llava-vlora", device="cpu", dtype=torch.float16)
    pixels = process_images([Image.open(work / question["image"])], processor, model.config).half()
    ids = tokenizer_image_token(prompt(question), tokenizer, return_tensors="pt")[None]
    reply = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=8)
    return tokenizer.decode(reply[0], skip_special_tokens=True).strip()
