"""The image of the anchors: its maps by their formulas, the program on the playground's tower, refusals."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.program import RequestError
from llava.tools import anchor_drawing, visual_anchors


def test_pca_map_shows_the_three_largest_components() -> None:
    """Features that vary along three known directions only: each channel is one of them, stretched to 0..255."""
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randn(64, 3, generator=generator)
    coordinates = torch.linalg.qr(coordinates - coordinates.mean(0)).Q * torch.tensor([9.0, 3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(20, 3, generator=generator)).Q.T
    shown = anchor_drawing.pca_map(coordinates @ basis + 5).float().reshape(64, 3)
    assert shown.amin() == 0 and shown.amax() == 255
    for channel, wanted in zip(shown.T, coordinates.T, strict=True):
        assert torch.corrcoef(torch.stack([channel, wanted]))[0, 1].abs() > 0.95


def test_heat_map_is_brightest_where_the_value_is_largest() -> None:
    values = torch.tensor([0.1, 0.9, 0.2, 0.3])
    shown = anchor_drawing.heat_map(values).float().sum(-1).flatten()
    assert shown.argmax() == 1 and shown.argmin() == 0
    assert torch.equal(anchor_drawing.heat_map(torch.ones(4)), anchor_drawing.heat_map(torch.zeros(4))), (
        "a flat map is one colour"
    )


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["visual_anchors", *flags])
    visual_anchors.main()


def test_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Runs without any flag but the image; the rings stand around the patches that AcFormer would choose."""
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "in.png")
    out = tmp_path / "new/anchors.png"
    run(monkeypatch, "--image-file", str(tmp_path / "in.png"), "--out", str(out), "--layers", "3", "4")
    assert "17 visual tokens of 64 patches" in capsys.readouterr().out
    sheet = Image.open(out)
    assert sheet.size == (
        4 * (anchor_drawing.PANEL + anchor_drawing.MARGIN) + anchor_drawing.MARGIN,
        3 * (anchor_drawing.PANEL + anchor_drawing.HEADER + anchor_drawing.MARGIN) + 12,
    )
    panel = sheet.crop(
        (
            anchor_drawing.MARGIN,
            anchor_drawing.MARGIN + anchor_drawing.HEADER,
            anchor_drawing.MARGIN + anchor_drawing.PANEL,
            anchor_drawing.MARGIN + 28 + anchor_drawing.PANEL,
        )
    )
    cell = anchor_drawing.PANEL // 8
    ringed = [
        patch
        for patch in range(64)
        if panel.getpixel(((patch % 8) * cell + cell // 2, (patch // 8) * cell + 2)) == anchor_drawing.RING
    ]
    assert len(ringed) == 16


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num-visual-tokens", "3"], "Legal values of mm_num_visual_tokens"),
        (["--layers", "9"], "outside the 5 hidden states"),
        (["--layers", "0"], "no class attention"),
        (["--vision-tower", "no/such/folder"], "Unknown vision tower"),
    ],
)
def test_refusals(flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    with pytest.raises(RequestError, match=message):
        run(monkeypatch, "--image-file", str(tmp_path / "in.png"), "--out", str(tmp_path / "out.png"), *flags)
    assert not (tmp_path / "out.png").exists()
