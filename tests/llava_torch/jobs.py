"""Run jobs with an old LLaVA in its own environment: python jobs.py JOBS.json.

JOBS.json is a list of objects. `do` names a function below; the other keys are its arguments.
"""

import contextlib
import io
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer


def logits(model: str, rows: list[list[int]], images: str, out: str) -> None:
    """Logits, loss and greedy tokens of a checkpoint in float32.

    Args:
        rows: token ids with image markers, one list per prompt; as many images as markers in all.
        images: torch file with pixels `[N, 3, H, W]`.
        out: torch file for a dictionary of results.
    """
    from llava.model import LlavaLlamaForCausalLM

    network = LlavaLlamaForCausalLM.from_pretrained(model, torch_dtype=torch.float32, low_cpu_mem_usage=True).eval()
    network.get_vision_tower().load_model()
    network.get_vision_tower().float()
    network.generation_config.eos_token_id = None
    pixels = torch.load(images, weights_only=True)
    results: dict[str, torch.Tensor] = {}
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    used = 0
    with torch.no_grad():
        for number, row in enumerate(rows):
            ids = torch.tensor([row])
            own = pixels[used : used + max(row.count(-200), 1)]
            used += len(own)
            results[f"logits{number}"] = network(ids, images=own).logits
            results[f"greedy{number}"] = network.generate(ids, images=own, **options)[:, -8:]
            results[f"beams{number}"] = network.generate(ids, images=own, num_beams=3, **options)[:, -8:]
        longest = max(map(len, rows))
        batch = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        labels = batch.masked_fill(mask == 0, -100)
        results["loss"] = network(batch, attention_mask=mask, labels=labels, images=pixels[:used]).loss
    torch.save(results, out)


def program(file: str, arguments: list[str], out: str, stdin: str = "") -> None:
    """Run a program of the package as a script; what it prints goes to `out`."""
    printed = io.StringIO()
    sys.argv, sys.stdin = [file, *arguments], io.StringIO(stdin)
    with contextlib.redirect_stdout(printed):
        runpy.run_path(file, run_name="__main__")
    Path(out).write_text(printed.getvalue())


def worker(model: str, request: dict[str, Any], out: str) -> None:
    """The frames of the model worker's reply to one request."""
    from llava.serve.model_worker import ModelWorker

    serving = ModelWorker(
        controller_addr="", worker_addr="", worker_id="test", no_register=True, model_path=model, model_base=None,
        model_name=None, load_8bit=False, load_4bit=False, device="cpu",
    )  # fmt: skip
    frames = [json.loads(frame.rstrip(b"\0")) for frame in serving.generate_stream_gate(request)]
    Path(out).write_text(json.dumps(frames))


def reload(model: str, base: str, out: str) -> None:
    """Open a LoRA checkpoint by the package's own loader and save it merged, with its tokenizer."""
    from llava.model.builder import load_pretrained_model

    tokenizer, network, _, _ = load_pretrained_model(model, base, Path(model).name, device_map="cpu", device="cpu")
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    AutoTokenizer.from_pretrained(out, use_fast=False)


def use_cpu() -> None:
    """Let programs that say `cuda` run without a GPU."""
    for owner in (torch.Tensor, torch.nn.Module):
        original = owner.to

        def to(self: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            args = tuple("cpu" if isinstance(arg, str) and arg == "cuda" else arg for arg in args)
            if kwargs.get("device") == "cuda":
                kwargs["device"] = "cpu"
            return _original(self, *args, **kwargs)

        owner.to = to


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    if not torch.cuda.is_available():
        use_cpu()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        print(f"{time.monotonic():.1f} job:", job["do"], flush=True)
        globals()[job.pop("do")](**job)
