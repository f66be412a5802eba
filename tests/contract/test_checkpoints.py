"""Opening and converting checkpoints against upstream's recordings (vectors/llava/ckpt)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import configuration_utils

from llava.mm_utils import tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM
from llava.model.apply_delta import apply_delta
from llava.model.builder import load_pretrained_model
from llava.model.consolidate import consolidate_ckpt
from llava.model.make_delta import make_delta
from llava.model.utils import auto_upgrade
from llava.tokenization import load_tokenizer
from llava.tokenizer_files import save_tokenizer
from tests.conftest import REPOSITORY, VECTORS

LOADS = json.loads((VECTORS / "llava/ckpt/loads.json").read_text())
ROWS = {row["key"]: row for row in LOADS["rows"]}
TOOLS = json.loads((VECTORS / "llava/ckpt/tools.json").read_text())
# Needs weights that upstream's training wrote and the vectors do not hold.
NOT_STORED = {"full_finetune", "lora_imse"}


def load(path: str, base: str | None = None, name: str | None = None, **kwargs: Any) -> tuple[Any, ...]:
    options = {"device": "cpu", "dtype": torch.float32} | kwargs
    return load_pretrained_model(path, base, name or path.rsplit("/", 1)[-1], **options)


@pytest.mark.parametrize("key", [k for k in ROWS if not ROWS[k]["error"] and k not in NOT_STORED])
def test_load(key: str, llava_vectors: Path) -> None:
    row, arrays = ROWS[key], np.load(llava_vectors / "ckpt/loads.npz")
    tokenizer, model, processor, context_length = load(row["model_path"], row["model_base"], row["model_name"])
    assert context_length == row["context_len"]
    assert len(tokenizer) == row["len_tokenizer"]
    assert model.config.vocab_size == row["vocab_size"]
    assert type(model).__name__ == row["model_class"]
    assert (processor is None) == (row["image_processor"] is None)
    assert sorted(model.state_dict()) == row["state_dict"]
    for name, norm in row["weight_norms"].items():
        assert model.state_dict()[name].norm().item() == pytest.approx(norm, rel=1e-4), name

    recorded = [i for i in range(len(row.get("prompts", []))) if f"{key}.logits_last{i}" in arrays.files]
    assert recorded or key == "plain_lm"
    for i in recorded:
        prompt = row["prompts"][i]
        ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
        pixels = torch.from_numpy(arrays[f"{key}.pixel_values"]) if f"{key}.pixel_values" in arrays else None
        images = pixels if pixels is not None and (ids == -200).any() else None
        with torch.no_grad():
            logits = model(ids, images=images).logits
        np.testing.assert_allclose(logits[0, -1], arrays[f"{key}.logits_last{i}"].squeeze(), rtol=0, atol=1e-3)
        np.testing.assert_allclose(
            logits[..., :8], arrays[f"{key}.logits_first8_{i}"].reshape(logits[..., :8].shape), rtol=0, atol=1e-3
        )
        if i == 1 and "greedy_new_ids_prompt1" in row:
            wanted = row["greedy_new_ids_prompt1"]
            new = model.generate(ids, images=images, do_sample=False, max_new_tokens=16, pad_token_id=0)
            assert new[0].tolist() == wanted


@pytest.mark.parametrize("key", [k for k in ROWS if ROWS[k]["error"] and k not in NOT_STORED])
def test_load_errors(key: str, llava_vectors: Path) -> None:
    row = ROWS[key]
    kind = {"OSError": OSError, "FileNotFoundError": FileNotFoundError}[row["error"]["type"]]
    with pytest.raises(kind):
        load(row["model_path"], row["model_base"], row["model_name"])


def test_dtypes(llava_vectors: Path) -> None:
    """float16 unless told otherwise, also on the CPU; the tower stays float32 with device_map auto only."""
    path, facts = "checkpoints/llava-v1-tiny-mlp2x", LOADS["unpatched_dtype_facts"]
    model = load_pretrained_model(path, None, "llava-v1-tiny-mlp2x", device_map="cpu")[1]
    assert str(model.dtype) == facts["model_dtype"]
    assert str(model.get_vision_tower().dtype) == facts["tower_dtype"]
    assert str(model.model.mm_projector[0].weight.dtype) == facts["projector_dtype"]
    auto = load_pretrained_model(path, None, "llava-v1-tiny-mlp2x")[1]
    expected = facts["device_cpu_default_device_map"]
    assert (str(auto.dtype), str(auto.get_vision_tower().dtype)) == (expected["model_dtype"], expected["tower_dtype"])


def test_config_decides_before_the_name(llava_vectors: Path) -> None:
    _, model, processor, _ = load("checkpoints/llava-v1-tiny-mlp2x", name="my-model")
    assert isinstance(model, LlavaLlamaForCausalLM)
    assert processor is not None


def test_old_model_type_llava(llava_vectors: Path, tmp_path: Path) -> None:
    """Public v1.5 folders say model_type llava, which transformers gives to an unrelated model of its own."""
    copy = tmp_path / "llava-v1.5-copy"
    shutil.copytree("checkpoints/llava-v1-tiny-mlp2x", copy)
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "llava"}
    (copy / "config.json").write_text(json.dumps(config))
    tokenizer, model, _, _ = load(str(copy))
    assert isinstance(model, LlavaLlamaForCausalLM)
    prompt = "USER: <image>\nhi ASSISTANT: a</s>"  # AutoTokenizer would take another tokenizer for this model type
    expected = load_tokenizer("checkpoints/llava-v1-tiny-mlp2x")
    assert tokenizer_image_token(prompt, tokenizer) == tokenizer_image_token(prompt, expected)
    save_tokenizer(tokenizer, str(tmp_path / "saved"))
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["model_type"] == "llava_llama"


@pytest.mark.parametrize("sharded", [False, True])
def test_old_torch_files(sharded: bool, llava_vectors: Path, tmp_path: Path) -> None:
    """`pytorch_model*.bin`, whole or sharded, with keys of very old files, loads like the safetensors file."""
    source = Path("checkpoints/llava-v1-tiny-mlp2x")
    shutil.copytree(source, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    state = load_file(source / "model.safetensors")
    state["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    if sharded:
        names = sorted(state)
        parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, keys in parts.items():
            torch.save({k: state[k] for k in keys}, tmp_path / file)
        index = {"metadata": {}, "weight_map": {k: file for file, keys in parts.items() for k in keys}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    expected, actual = load(str(source))[1].state_dict(), load(str(tmp_path), name="llava")[1].state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[k], actual[k]) for k in expected)


@pytest.mark.parametrize(
    "name", ["llava-v1-tiny-mlp2x", "llava-v1-tiny-linear-imse", "llava-v1.6-tiny-anyres-unpad", "llava-tiny-mistral"]
)
def test_saved_as_upstream_saves(name: str, llava_vectors: Path, tmp_path: Path) -> None:
    """Same files, tensor names, shapes and config keys, so that upstream reads what this package writes."""
    tokenizer, model, _, _ = load(f"checkpoints/{name}")
    model.save_pretrained(tmp_path)
    save_tokenizer(tokenizer, str(tmp_path))
    recorded = json.loads(Path("ckpt/files.json").read_text())[name]["model.safetensors"]["keys"]
    saved = load_file(tmp_path / "model.safetensors")
    assert {k: [list(v.shape), str(v.dtype)] for k, v in saved.items()} == recorded
    old = json.loads(Path(f"checkpoints/{name}/config.json").read_text())
    new = json.loads((tmp_path / "config.json").read_text())
    for key in set(old) - {"_name_or_path", "transformers_version"}:
        assert new[key] == old[key], key
    for file in Path(f"checkpoints/{name}").iterdir():
        assert (tmp_path / file.name).exists(), file.name
    old_tokenizer = json.loads(Path(f"checkpoints/{name}/tokenizer_config.json").read_text())
    new_tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for key in ("legacy", "add_bos_token", "add_eos_token", "added_tokens_decoder", "tokenizer_class", "padding_side"):
        assert new_tokenizer[key] == old_tokenizer[key], key
    assert (tmp_path / "tokenizer.model").read_bytes() == Path(f"checkpoints/{name}/tokenizer.model").read_bytes()
    again, text = load_tokenizer(str(tmp_path)), "USER: <image> a\nhi</s>USER: <im_start> x"
    assert tokenizer_image_token(text, again) == tokenizer_image_token(text, tokenizer)


def test_tower_in_the_checkpoint(llava_vectors: Path, tmp_path: Path) -> None:
    """Ignored by default; with unfreeze_mm_vision_tower the checkpoint's tower is the one that runs."""
    tokenizer, model, _, _ = load("checkpoints/llava-v1-tiny-mlp2x")
    with torch.no_grad():
        for parameter in model.get_vision_tower().parameters():
            parameter.mul_(1.5)
    for unfreeze in (False, True):
        folder = tmp_path / f"llava-{unfreeze}"
        model.config.unfreeze_mm_vision_tower = unfreeze
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = load(str(folder))[1].get_vision_tower().state_dict()
        same = [torch.equal(again[k], v) for k, v in model.get_vision_tower().state_dict().items()]
        assert all(same) if unfreeze else not any(same)
    # A checkpoint that asks for its own tower and lacks it gets the one that mm_vision_tower names.
    state = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "vision_tower" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    original = load("checkpoints/llava-v1-tiny-mlp2x")[1].get_vision_tower().state_dict()
    filled = load(str(folder))[1].get_vision_tower().state_dict()
    assert all(torch.equal(filled[k], v) for k, v in original.items())


def _run(*command: str, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess:
    import os

    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=cwd, input=stdin, env=environment, check=False
    )


def _facts(folder: Path) -> dict[str, list]:
    return {k: [list(v.shape), v.float().norm().item()] for k, v in load_file(folder / "model.safetensors").items()}


def _assert_tensors(folder: Path, recorded: dict[str, list], relative: float) -> None:
    facts = _facts(folder)
    assert set(facts) == set(recorded)
    for name, (shape, _, norm) in recorded.items():
        assert facts[name][0] == shape, name
        assert facts[name][1] == pytest.approx(norm, rel=relative, abs=2e-2), name


def test_merge_lora_weights(llava_vectors: Path, tmp_path: Path) -> None:
    out = TOOLS["merge_lora_weights"]["out"]
    script = str(REPOSITORY / "scripts/merge_lora_weights.py")
    result = _run(script, "--model-path", "checkpoints/llava-v1-tiny-lora", "--model-base", "assets/base-llama",
                  "--save-model-path", str(tmp_path))  # fmt: skip
    assert result.returncode == 0, result.stderr
    _assert_tensors(tmp_path, out["model.safetensors"], 2e-3)
    assert set(out) <= {file.name for file in tmp_path.iterdir()}
    merged = load(str(tmp_path), name="llava-merged")[1]
    expected = load("checkpoints/llava-v1-tiny-lora", "assets/base-llama")[1]
    ids = torch.tensor([[1, 300, 301, 302]])
    torch.testing.assert_close(merged(ids).logits, expected(ids).logits, rtol=0, atol=5e-2)  # saved in float16


def test_extract_mm_projector(llava_vectors: Path, tmp_path: Path) -> None:
    script, recorded = str(REPOSITORY / "scripts/extract_mm_projector.py"), TOOLS["extract_mm_projector"]["out"]
    source = "checkpoints/llava-v1-tiny-mlp2x"
    state = load_file(f"{source}/model.safetensors")
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin/pytorch_model.bin")
    for folder in (source, str(tmp_path / "bin")):
        output = tmp_path / "proj.bin"
        result = _run(script, "--model-path", folder, "--output", str(output))
        assert result.returncode == 0, result.stderr
        extracted = torch.load(output, weights_only=True)
        assert {k: [list(v.shape), str(v.dtype)] for k, v in extracted.items()} == recorded
        assert all(torch.equal(v, state[k]) for k, v in extracted.items())
    bad = _run(script, "--model-path", "assets/base-llama", "--output", str(tmp_path / "none.bin"))
    assert bad.returncode != 0
    assert not (tmp_path / "none.bin").exists()


def test_consolidate(llava_vectors: Path, tmp_path: Path) -> None:
    consolidate_ckpt("checkpoints/llava-v1-tiny-mlp2x", str(tmp_path))
    _assert_tensors(tmp_path, TOOLS["consolidate"]["out"]["model.safetensors"], 2e-3)
    assert (tmp_path / "tokenizer.model").exists()


@pytest.mark.parametrize("target", ["llava-v1-tiny-mlp2x", "llava-v1-tiny-linear-imse"])
def test_delta_there_and_back(target: str, llava_vectors: Path, tmp_path: Path) -> None:
    """Upstream refuses MLP projectors here; the round trip must give the target again, in float16."""
    make_delta("assets/base-llama", f"checkpoints/{target}", str(tmp_path / "delta"), None)
    apply_delta("assets/base-llama", str(tmp_path / "applied"), str(tmp_path / "delta"))
    original = load_file(f"checkpoints/{target}/model.safetensors")
    applied = load_file(tmp_path / "applied/model.safetensors")
    assert set(applied) == {k for k in original if "vision_tower" not in k}
    for name, tensor in applied.items():
        torch.testing.assert_close(tensor.float(), original[name], rtol=2e-3, atol=2e-2)
    delta = load_file(tmp_path / "delta/model.safetensors")
    assert delta["model.layers.0.self_attn.q_proj.weight"].float().norm() < 0.5
    assert delta["model.embed_tokens.weight"].shape == original["model.embed_tokens.weight"].shape


def test_delta_recorded(llava_vectors: Path, tmp_path: Path) -> None:
    """The recorded delta's embedding tables: base subtracted from the top-left block, new rows kept."""
    recorded = TOOLS["make_delta"]["out"]["model.safetensors"]
    make_delta("assets/base-llama", "checkpoints/llava-v1-tiny-linear-imse", str(tmp_path), None)
    ours = load_file(tmp_path / "model.safetensors")
    assert {name: list(t.shape) for name, t in ours.items() if "mm_projector" not in name} == {
        name: shape for name, (shape, _, _) in recorded.items() if "mm_projector" not in name
    }


@pytest.mark.parametrize("answer, accepted", [("Y\n", True), ("n\n", False), ("", False)])
def test_auto_upgrade(answer: str, accepted: bool, tmp_path: Path) -> None:
    folder = tmp_path / "llava-old"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    result = _run("-c", f"from llava.model.utils import auto_upgrade; auto_upgrade({str(folder)!r})", stdin=answer)
    stored = json.loads((folder / "config.json").read_text())
    assert result.returncode == (0 if accepted else 1), result.stderr
    assert stored["model_type"] == ("llava_llama" if accepted else "llama")
    if accepted:
        assert stored["architectures"] == ["LlavaLlamaForCausalLM"]
        auto_upgrade(str(folder))  # a second time there is nothing to ask


def test_hostile_files_are_not_executed(llava_vectors: Path, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    folder = tmp_path / "llava-evil"
    shutil.copytree("checkpoints/llava-v1-tiny-pretrain", folder)
    (folder / "mm_projector.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="plain tensors"):
        load(str(folder), "assets/base-llama")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("model_type", ["llama", "llava", "mistral", "llava_llama", "llava_mistral"])
def test_the_tokenizer_does_not_depend_on_the_model_type(model_type: str, llava_vectors: Path, tmp_path: Path) -> None:
    shutil.copytree("assets/tokenizer-llama", tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    recorded = json.loads(Path("mm_utils/tokenizer_image_token.json").read_text())["tokenizer-llama"]
    assert all(tokenizer_image_token(row["prompt"], tokenizer) == row["ids"] for row in recorded)
    save_tokenizer(tokenizer, str(tmp_path / "saved"))
    again = load_tokenizer(str(tmp_path / "saved"))
    assert all(tokenizer_image_token(row["prompt"], again) == row["ids"] for row in recorded)


def test_other_families_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "mm_vision_tower": "x"}))
    with pytest.raises(NotImplementedError, match=r"'qwen2'.*Llama or Mistral"):
        load(str(tmp_path), name="llava-qwen")
    with pytest.raises(NotImplementedError, match=r"'qwen2'.*Llama or Mistral"):
        consolidate_ckpt(str(tmp_path), str(tmp_path / "out"))


def test_the_old_name_of_dtype_is_written_and_read_in_silence(
    llava_vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old readers look for it; transformers would say at every start that it is deprecated."""
    said: list[str] = []
    monkeypatch.setattr(configuration_utils.logger, "warning_once", said.append)
    _, model, _, _ = load_pretrained_model(
        "checkpoints/llava-v1-tiny-mlp2x", None, "llava", device="cpu", dtype=torch.float32
    )
    assert model.config.torch_dtype == model.config.dtype == torch.float32
    model.config.torch_dtype = torch.bfloat16
    assert model.config.dtype == torch.bfloat16
    model.config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert not [line for line in said if "torch_dtype" in line]
