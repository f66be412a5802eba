"""Draws the demo's two example images: python -m playground.world.draw_examples [FOLDER]

A man who irons on the back of a taxi, and a jetty at a lake before a storm: shapes and gradients, drawn twice as
large as needed and scaled down, so that edges are smooth. The same bytes at every run.
"""

import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

SCALE = 2
WIDTH, HEIGHT = 800, 600
FOLDER = Path(__file__).resolve().parent.parent.parent / "llava/serve/examples"
Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


class Sheet:
    """An image in coordinates of the final size."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE))
        self.draw = ImageDraw.Draw(self.image)

    def gradient(self, top: float, bottom: float, above: Colour, below: Colour) -> None:
        """Horizontal bands from one colour to another."""
        for y in range(round(top * SCALE), round(bottom * SCALE)):
            share = (y / SCALE - top) / (bottom - top)
            self.draw.line((0, y, WIDTH * SCALE, y), fill=mix(above, below, share))

    def polygon(self, points: Points, colour: Colour) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, radius: float = 0) -> None:
        self.draw.rounded_rectangle([v * SCALE for v in (left, top, right, bottom)], radius * SCALE, fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.draw.ellipse([v * SCALE for v in (x - rx, y - ry, x + rx, y + ry)], fill=colour)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """A stroke with round ends and corners."""
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), joint="curve")
        for x, y in points:
            self.ellipse(x, y, width / 2, width / 2, colour)

    def text(self, x: float, y: float, text: str, size: float, colour: Colour) -> None:
        font = ImageFont.load_default(size=size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor="mm")

    def soften(self, left: float, top: float, right: float, bottom: float, radius: float) -> None:
        """Blur a part."""
        area = tuple(round(v * SCALE) for v in (left, top, right, bottom))
        self.image.paste(self.image.crop(area).filter(ImageFilter.GaussianBlur(radius * SCALE)), area)
        self.draw = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def draw_street(sheet: Sheet, dice: random.Random) -> None:
    sheet.gradient(0, 330, (158, 196, 226), (226, 232, 232))
    x = -20
    while x < WIDTH:
        width, top = dice.randint(90, 150), dice.randint(20, 140)
        wall = dice.choice([(176, 136, 112), (150, 144, 150), (196, 174, 142), (128, 122, 130), (168, 110, 92)])
        sheet.box(x, top, x + width, 360, wall)
        glass = mix(wall, (60, 78, 100), 0.65)
        for wy in range(top + 18, 300, 38):
            for wx in range(x + 14, x + width - 22, 30):
                sheet.box(wx, wy, wx + 16, wy + 24, dice.choice([glass, glass, (236, 214, 150)]))
        sheet.box(x + 8, 308, x + width - 8, 360, mix(wall, (30, 30, 40), 0.6))
        sheet.polygon([(x + 4, 308), (x + width - 4, 308), (x + width + 4, 322), (x - 4, 322)], (150, 52, 48))
        x += width
    sheet.soften(0, 0, WIDTH, 360, 1.6)
    sheet.gradient(356, 392, (176, 174, 170), (150, 148, 146))
    sheet.gradient(390, HEIGHT, (96, 98, 104), (58, 60, 66))
    for x in range(-40, WIDTH, 150):
        sheet.polygon([(x, 560), (x + 80, 560), (x + 72, 570), (x - 10, 570)], (216, 212, 190))


def wheel(sheet: Sheet, x: float, y: float) -> None:
    sheet.ellipse(x, y, 42, 42, (24, 24, 26))
    sheet.ellipse(x, y, 24, 24, (176, 178, 184))
    for k in range(5):
        angle = 2 * math.pi * k / 5
        sheet.line([(x, y), (x + 20 * math.cos(angle), y + 20 * math.sin(angle))], (120, 122, 130), 5)
    sheet.ellipse(x, y, 6, 6, (70, 72, 78))


def draw_taxi(sheet: Sheet) -> None:
    """A yellow estate car, seen from the side, with a step at its back."""
    yellow, dark, shade = (246, 190, 30), (40, 44, 52), (206, 150, 14)
    sheet.ellipse(400, 524, 330, 18, (44, 45, 50))
    sheet.polygon([(224, 300), (300, 232), (510, 232), (600, 312)], yellow)
    sheet.polygon([(250, 302), (308, 248), (388, 248), (388, 302)], (150, 190, 210))
    sheet.polygon([(404, 248), (500, 248), (566, 304), (404, 302)], (150, 190, 210))
    sheet.polygon([(404, 248), (440, 248), (470, 302), (404, 302)], (184, 214, 226))
    sheet.box(150, 300, 720, 460, yellow, 26)
    sheet.box(150, 404, 720, 470, shade, 16)
    sheet.polygon([(600, 306), (690, 316), (720, 340), (720, 360), (590, 344)], mix(yellow, (255, 255, 255), 0.25))
    for i in range(30):  # the chequered band
        sheet.box(160 + i * 18, 366 + 9 * (i % 2), 178 + i * 18, 375 + 9 * (i % 2), dark)
    for x in (396, 566):
        sheet.line([(x, 306), (x, 450)], shade, 2.5)
    for x in (350, 520):
        sheet.box(x, 336, x + 30, 343, dark, 3)
    sheet.text(470, 432, "TAXI", 30, dark)
    sheet.box(352, 206, 446, 234, (250, 246, 226), 6)
    sheet.text(399, 220, "TAXI", 18, dark)
    sheet.box(704, 372, 726, 400, (255, 250, 220), 6)
    sheet.box(146, 360, 162, 398, (196, 40, 36), 4)
    sheet.box(690, 450, 738, 472, (90, 92, 98), 8)
    sheet.box(40, 462, 190, 476, (90, 92, 98), 6)
    wheel(sheet, 262, 474)
    wheel(sheet, 608, 474)


def draw_ironing(sheet: Sheet) -> None:
    """A man on the step behind the taxi, an ironing board tied to its roof rack before him."""
    skin, shirt, trousers = (224, 172, 136), (250, 222, 60), (52, 70, 110)
    sheet.line([(96, 340), (92, 400), (100, 462)], trousers, 26)
    sheet.line([(110, 340), (128, 400), (130, 462)], mix(trousers, (0, 0, 0), 0.2), 26)
    sheet.box(80, 454, 122, 470, (240, 240, 236), 7)
    sheet.box(114, 454, 154, 470, (240, 240, 236), 7)
    for foot in (170, 246):  # the board's legs stand on the boot
        sheet.line([(208, 262), (foot, 304)], (150, 152, 160), 6)
    sheet.polygon([(128, 248), (322, 248), (344, 255), (322, 264), (128, 264)], (86, 132, 186))
    sheet.polygon([(150, 248), (262, 248), (286, 290), (172, 284)], (246, 246, 250))  # a shirt hangs over the edge
    sheet.polygon([(150, 248), (262, 248), (264, 255), (152, 255)], (222, 226, 236))
    sheet.line([(214, 256), (226, 286)], (214, 218, 230), 2)
    sheet.box(80, 214, 130, 348, shirt, 20)
    sheet.line([(92, 234), (118, 274), (166, 258)], mix(shirt, (200, 120, 0), 0.25), 20)
    sheet.line([(118, 232), (158, 262), (206, 236)], shirt, 20)
    sheet.ellipse(166, 258, 10, 9, skin)
    sheet.ellipse(208, 234, 11, 10, skin)
    sheet.box(98, 190, 114, 222, mix(skin, (150, 90, 60), 0.25), 6)
    sheet.ellipse(108, 172, 27, 31, skin)
    sheet.polygon(
        [(80, 168), (84, 142), (108, 134), (134, 144), (138, 158), (112, 152), (94, 158), (92, 176)], (66, 46, 34)
    )
    sheet.ellipse(122, 170, 3, 4, (40, 30, 30))
    sheet.line([(113, 189), (124, 188)], (150, 70, 60), 3)
    sheet.polygon([(196, 248), (252, 248), (244, 230), (206, 226)], (206, 52, 60))
    sheet.line([(208, 226), (212, 214), (240, 216), (240, 230)], (60, 60, 66), 6)
    for x, y, size in ((262, 226, 7), (272, 212, 9), (284, 196, 11)):  # steam
        sheet.ellipse(x, y, size, size * 0.8, (238, 240, 242))


def extreme_ironing() -> Image.Image:
    sheet = Sheet()
    draw_street(sheet, random.Random(4))
    draw_taxi(sheet)
    draw_ironing(sheet)
    return sheet.finished()


def ridge(sheet: Sheet, dice: random.Random, base: float, height: float, colour: Colour, below: float) -> None:
    """A chain of hills from side to side."""
    waves = [(dice.uniform(0.004, 0.02), dice.uniform(0, 6), dice.uniform(0.3, 1)) for _ in range(5)]
    points = [
        (x, base - height * abs(sum(a * math.sin(f * x + p) for f, p, a in waves)) / 2) for x in range(0, WIDTH + 4, 4)
    ]
    sheet.polygon([*points, (WIDTH, below), (0, below)], colour)


def draw_lake(sheet: Sheet, dice: random.Random) -> None:
    sheet.gradient(0, 300, (92, 118, 156), (244, 206, 170))
    sheet.ellipse(600, 236, 30, 30, (255, 240, 206))
    for _ in range(46):
        x, y = dice.uniform(0, WIDTH), dice.uniform(16, 120)
        sheet.ellipse(x, y, dice.uniform(40, 110), dice.uniform(8, 20), mix((96, 108, 136), (206, 196, 196), y / 150))
    sheet.soften(0, 0, WIDTH, 300, 9)
    ridge(sheet, dice, 292, 150, (126, 140, 166), 310)
    ridge(sheet, dice, 300, 100, (88, 110, 128), 310)
    ridge(sheet, dice, 306, 46, (46, 76, 74), 312)
    for x in range(0, WIDTH, 7):  # firs along the shore
        tall = dice.uniform(8, 30)
        sheet.polygon([(x - 5, 312), (x, 312 - tall), (x + 5, 312)], mix((28, 56, 52), (50, 84, 70), dice.random()))
    sheet.gradient(310, HEIGHT, (206, 190, 176), (30, 66, 92))
    reflection = sheet.image.crop((0, 190 * SCALE, WIDTH * SCALE, 310 * SCALE)).transpose(
        Image.Transpose.FLIP_TOP_BOTTOM
    )
    part = (0, 310 * SCALE, WIDTH * SCALE, 430 * SCALE)
    fade = Image.linear_gradient("L").resize(reflection.size).point(lambda level: round((255 - level) * 0.7))
    sheet.image.paste(Image.composite(reflection, sheet.image.crop(part), fade), part)
    sheet.draw = ImageDraw.Draw(sheet.image)
    sheet.soften(0, 312, WIDTH, 440, 1.5)
    for _ in range(420):
        y = 318 + 280 * dice.random() ** 1.6
        length = 6 + (y - 310) * 0.22 * dice.random()
        x = dice.uniform(0, WIDTH)
        light = dice.choice([(232, 222, 208), (176, 196, 208), (24, 56, 80)])
        ground = sheet.image.getpixel((round(x) * SCALE % (WIDTH * SCALE), round(y) * SCALE % (HEIGHT * SCALE)))
        sheet.line([(x, y), (x + length, y)], mix(ground, light, 0.35), 1 + (y - 310) / 160)


def draw_jetty(sheet: Sheet, dice: random.Random) -> None:
    """Planks that run out to a platform; each one nearer is larger."""
    near, far, steps = (250, 590, HEIGHT), (376, 430, 384), 26

    def edge(share: float) -> tuple[float, float, float]:
        deep = share**1.7
        return tuple(f + (n - f) * deep for n, f in zip(near, far, strict=True))

    for share in (0.12, 0.42, 0.68, 0.92):
        left, right, y = edge(share)
        for x in (left, right):
            sheet.line([(x, y), (x, y + 16 + 46 * share)], (58, 44, 36), 4 + 12 * share)
    for i in range(steps):
        (l0, r0, y0), (l1, r1, y1) = edge(i / steps), edge((i + 1) / steps)
        wood = mix((150, 122, 98), (110, 84, 64), dice.random())
        sheet.polygon([(l0, y0), (r0, y0), (r1, y1), (l1, y1)], wood)
        sheet.line([(l1, y1), (r1, y1)], (60, 44, 36), 0.6 + 2.4 * i / steps)
    sheet.polygon([(330, 384), (470, 384), (482, 394), (318, 394)], (140, 112, 90))
    sheet.box(318, 394, 482, 400, (72, 54, 44))
    for x in (322, 400, 478):
        sheet.line([(x, 398), (x, 418)], (58, 44, 36), 5)
    sheet.line([(326, 386), (326, 356)], (66, 50, 40), 5)
    sheet.ellipse(326, 372, 11, 12, (226, 96, 52))  # a lifebuoy on its post
    sheet.ellipse(326, 372, 5, 6, (196, 184, 172))


def waterview() -> Image.Image:
    sheet, dice = Sheet(), random.Random(11)
    draw_lake(sheet, dice)
    draw_jetty(sheet, dice)
    return sheet.finished()


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in (("extreme_ironing", extreme_ironing()), ("waterview", waterview())):
        image.save(folder / f"{name}.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
