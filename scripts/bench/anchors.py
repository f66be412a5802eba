"""Anchor search: the written rule on all attention maps against ours.

    python scripts/bench/anchors.py --markdown docs/benchmarks/anchors.md

*Plain*: CLIP on eager attention returns the maps of all blocks and all hidden states, the last block included; a loop
over images and heads sorts each head's row, drops on the host what earlier heads have taken and keeps the last p.
*Ours*: `CLIPVisionTower.encode(need_cls_attention=True)` and `select_visual_anchors`.

Random weights at CLIP-L/336's size; the selections alone are timed on random attention in which the heads partly agree.
Both must give the same indices, or the benchmark stops. Everything is measured in one run, taking turns; memory on a
CPU in fresh processes.
"""

import argparse
import json
from types import SimpleNamespace

import torch
from common import (
    TOY_VISION,
    add_common_flags,
    clip_folder,
    interleaved_medians,
    markdown_table,
    peak_bytes_above,
    precision,
    publish,
    random_clip,
    random_images,
    run_again,
)
from transformers import CLIPVisionModel

from llava.model.multimodal_encoder.clip_encoder import ClipBackbone, CLIPVisionTower
from llava.model.multimodal_projector.visual_anchors import select_visual_anchors
from llava.tools.flops import CLIP_L_336, VisionShape

SELECT_LAYER = -2
# A smaller image for machines where CLIP-L takes too long; the same number of patches and heads.
BASE = VisionShape(width=512, blocks=12)
GEOMETRIES = {"clip-l": CLIP_L_336, "base": BASE}


def select_plainly(cls_attention: torch.Tensor, num_anchors: int) -> torch.Tensor:
    """The progressive per-head rule of the paper, written out: `[B, H, P]` -> `[B, T]`."""
    per_head = num_anchors // cls_attention.shape[1]
    rows = []
    for image in cls_attention:
        taken: set[int] = set()
        for head in image:
            ascending = head.argsort(stable=True).tolist()  # among equals the larger index comes last and wins
            free = [patch for patch in ascending if patch not in taken]
            taken |= set(free[-per_head:])
        rows.append([0, *(patch + 1 for patch in sorted(taken))])
    return torch.tensor(rows, device=cls_attention.device)


@torch.no_grad()
def search_plainly(clip: CLIPVisionModel, images: torch.Tensor, num_anchors: int) -> torch.Tensor:
    """Tower and selection, with every attention map and hidden state asked for."""
    output = clip(images, output_attentions=True, output_hidden_states=True)
    return select_plainly(output.attentions[SELECT_LAYER][:, :, 0, 1:], num_anchors)


@torch.no_grad()
def search(tower: CLIPVisionTower, images: torch.Tensor, num_anchors: int) -> torch.Tensor:
    """Tower and selection as the connectors use them."""
    return select_visual_anchors(tower.encode(images, need_cls_attention=True).cls_attention, num_anchors)


def tower_around(clip: CLIPVisionModel, vision: VisionShape) -> CLIPVisionTower:
    """Our tower, with `clip` inside."""
    with clip_folder(vision) as folder:
        tower = CLIPVisionTower(folder, SimpleNamespace(mm_vision_select_layer=SELECT_LAYER), delay_load=True)
    tower.vision_tower, tower.is_loaded = ClipBackbone(clip), True
    return tower


def random_attention(batch: int, vision: VisionShape, device: str) -> torch.Tensor:
    """`[B, H, P]`: softmax rows of which the heads share one half."""
    shared = torch.randn(batch, 1, vision.patches, device=device)
    return (shared + torch.randn(batch, vision.heads, vision.patches, device=device)).softmax(dim=-1)


def measure_selection(args: argparse.Namespace, vision: VisionShape) -> list[dict[str, float]]:
    """Seconds of the selections alone, per batch size."""
    results = []
    for batch in args.batches:
        attention = random_attention(batch, vision, args.device)
        plain, ours = (select(attention, args.tokens - 1) for select in (select_plainly, select_visual_anchors))
        if not torch.equal(plain, ours):
            raise RuntimeError(f"The two selections differ at batch {batch}")
        runs = {
            "plain": lambda attention=attention: select_plainly(attention, args.tokens - 1),
            "ours": lambda attention=attention: select_visual_anchors(attention, args.tokens - 1),
        }
        results.append({"batch": batch, **interleaved_medians(runs, 10 * args.rounds, args.device)})
    return results


def measure_search(args: argparse.Namespace, vision: VisionShape) -> dict[str, float]:
    """Seconds of tower and selection, and the share of indices in which they agree.

    The two towers round differently, so that in rare cases neighbours in a ranking change places; in float32 more than
    one anchor in a hundred would be a fault.
    """
    fused, eager = (random_clip(vision, kind, args.device, precision(args)) for kind in ("sdpa", "eager"))
    eager.load_state_dict(fused.state_dict())
    tower = tower_around(fused, vision)
    images = random_images(vision, args.tower_batch, args.device, precision(args))
    plain, ours = search_plainly(eager, images, args.tokens - 1), search(tower, images, args.tokens - 1)
    share = (plain.unsqueeze(2) == ours.unsqueeze(1)).any(dim=2).float().mean().item()
    if precision(args) == torch.float32 and share < 0.99:
        raise RuntimeError(f"Only {share:.1%} of the anchors agree")
    runs = {
        "plain": lambda: search_plainly(eager, images, args.tokens - 1),
        "ours": lambda: search(tower, images, args.tokens - 1),
    }
    medians = interleaved_medians(runs, args.rounds, args.device)
    return {"batch": args.tower_batch, "same_indices": share, **medians}


def measure_memory(args: argparse.Namespace, vision: VisionShape, which: str) -> int:
    """Bytes that tower and selection need above the model."""
    clip = random_clip(vision, "eager" if which == "plain" else "sdpa", args.device, precision(args))
    images = random_images(vision, args.tower_batch, args.device, precision(args))
    if which == "plain":
        return peak_bytes_above(args.device, lambda: search_plainly(clip, images, args.tokens - 1))
    tower = tower_around(clip, vision)
    return peak_bytes_above(args.device, lambda: search(tower, images, args.tokens - 1))


def report(selection: list[dict[str, float]], whole: dict[str, float], memory: dict[str, int]) -> str:
    """All ratios as one Markdown table."""
    rows = [[f"selection, batch {r['batch']}, ms", *_milliseconds(r), _ratio(r)] for r in selection]
    batch = whole["batch"]
    rows.append([f"tower + selection, batch {batch}, ms", *_milliseconds(whole), _ratio(whole)])
    mebibytes = [f"{memory[which] / 2**20:.1f}" for which in ("plain", "ours")]
    rows.append([f"peak memory above the model, batch {batch}, MiB", *mebibytes, _ratio(memory)])
    table = markdown_table(["", "plain", "ours", "ratio"], rows)
    return (
        f"{table}\n\nIdentical indices on the same attention at every batch size; tower by tower (eager against fused "
        f"attention, rounded differently) {whole['same_indices']:.2%} of the anchors are the same."
    )


def _milliseconds(figures: dict[str, float]) -> list[str]:
    return [f"{1e3 * figures[which]:.2f}" for which in ("plain", "ours")]


def _ratio(figures: dict[str, float]) -> str:
    return f"{figures['plain'] / figures['ours']:.2f}x"


def parse_arguments() -> argparse.Namespace:
    """The command line; `--quick` overrides the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="clip-l")
    parser.add_argument("--tokens", type=int, default=145, help="visual tokens, class token counted")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="batch sizes of the selection alone")
    parser.add_argument("--tower-batch", type=int, default=4, help="batch size of tower and memory")
    parser.add_argument("--memory-of", choices=["plain", "ours"], help=argparse.SUPPRESS)  # a fresh process's task
    args = parser.parse_args()
    args.rounds = args.rounds or 5
    if args.quick:
        args.tokens, args.rounds, args.tower_batch = 17, 1, 2
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    vision = TOY_VISION if args.quick else GEOMETRIES[args.geometry]
    if args.memory_of:
        print(json.dumps(measure_memory(args, vision, args.memory_of)))
        return
    selection = measure_selection(args, vision)
    whole = measure_search(args, vision)
    memory = {which: run_again("--memory-of", which) for which in ("plain", "ours")}
    name = "toy" if args.quick else args.geometry
    title = f"Anchor search, {name} geometry, {args.tokens} tokens"
    figures = {"selection": selection, "tower_and_selection": whole, "peak_bytes_above_model": memory}
    publish(args, title, report(selection, whole, memory), figures)


if __name__ == "__main__":
    main()
