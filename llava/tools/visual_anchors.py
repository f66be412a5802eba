"""Draw the visual anchors of an image: python -m llava.tools.visual_anchors --image-file image.jpg --out anchors.png

One row per layer of the vision tower: the principal components of the patch features as colours, the norm of every
patch token, and the class token's attention to it (dark blue is small, yellow large). Below, that attention head by
head at the select layer. The anchors that AcFormer would choose are circled (arXiv 2405.17815, figures 2 and 4).
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import llava
from llava.program import RequestError, run_program

TINY_TOWER = Path(llava.__file__).resolve().parents[1] / "playground/bases/tiny-clip"


def main() -> None:
    """Read the flags, draw, write the file.

    Raises:
        RequestError: no tower, or a budget or layer that the tower does not have.
    """
    args = build_parser().parse_args()
    if args.vision_tower is None and not TINY_TOWER.exists():
        raise RequestError("give a CLIP folder or Hub name with --vision-tower; the playground's is not available")

    from llava.files import write_atomically
    from llava.image_source import load_image
    from llava.model.multimodal_encoder.builder import build_vision_tower
    from llava.tools.anchor_drawing import draw_anchors

    image = load_image(args.image_file)
    config = SimpleNamespace(
        mm_vision_tower=args.vision_tower or str(TINY_TOWER), mm_vision_select_layer=args.select_layer
    )
    try:
        tower = build_vision_tower(config)
        heads = tower.config.num_attention_heads
        tokens = args.num_visual_tokens
        if tokens is None:
            tokens = min(145, 1 + tower.num_patches // 4 // heads * heads)
        sheet = draw_anchors(tower, image, tokens, args.layers)
    except ValueError as error:
        raise RequestError(str(error)) from error
    write_atomically(args.out, lambda path: sheet.save(path, format="PNG"))
    print(f"{args.out}: {tokens} visual tokens of {tower.num_patches} patches, {config.mm_vision_tower}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-file", required=True, help="path, or http:// or https:// address")
    parser.add_argument("--vision-tower", default=None, help="CLIP folder or Hub name; default: the playground's")
    parser.add_argument("--out", default="anchors.png", help="PNG to write")
    parser.add_argument("--num-visual-tokens", type=int, default=None, help="default: 145, or a quarter of the patches")
    parser.add_argument("--select-layer", type=int, default=-2, help="mm_vision_select_layer: decides the anchors")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=None, help="hidden states to show, from 1; default all"
    )
    return parser


if __name__ == "__main__":
    run_program(main)
