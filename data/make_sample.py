"""Draw the sample: a small data set in PASCAL VOC layout, made of pictograms.

Run ``python data/make_sample.py`` to make ``data/VOCsample`` again. The same font and the same
Pillow give the same bytes: every choice comes from ``random.Random(SEED).random()``, and no
arithmetic depends on the processor.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
# The sample in the repository was drawn with these; with others the pictures may differ a little.
FONT_SHA256 = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"
PILLOW = "13.0.0"

SEED = 2026
PER_CLASS = 10
SIZES = ((300, 225), (225, 300), (260, 260), (320, 240), (240, 320), (280, 210), (300, 200))

Color = tuple[int, int, int]

# What stands for each class: emoji, or the name of a drawing of this file.
GLYPHS = {
    "aeroplane": "✈🛩🛫🛬",
    "bicycle": "🚲",
    "bird": "🐦🦅🦆🦉🐧🦜🦩🦢🐓🕊",
    "boat": "⛵🚤🛶🚢🛥⛴",
    "bottle": "🍾🍼🧴🍶",
    "bus": "🚌🚍🚎",
    "car": "🚗🚘🚙🚕🚖🏎",
    "cat": "🐈🐱😺😸😻",
    "chair": "🪑💺",
    "cow": "🐄🐮🐂",
    "diningtable": ("table:round", "table:square", "table:trestle"),
    "dog": "🐕🐶🐩🦮",
    "horse": "🐎🐴",
    "motorbike": "🏍🛵",
    "person": "🧍🚶🏃💃🕺🧑👩👨👵🧎",
    "pottedplant": ("🪴", "pot:🌵", "pot:🌻", "pot:🌷", "🪴", "pot:🌲"),
    "sheep": "🐑🐏",
    "sofa": "🛋",
    "train": "🚆🚂🚄🚅🚊🚇🚝",
    "tvmonitor": "📺🖥",
}
SCENES = {
    "sky": ("aeroplane", "bird"),
    "sea": ("boat",),
    "road": ("bicycle", "bus", "car", "motorbike", "train", "person"),
    "meadow": ("cow", "dog", "horse", "sheep", "cat"),
    "room": ("bottle", "chair", "diningtable", "pottedplant", "sofa", "tvmonitor"),
}
# Pairs that are seen together; the second one is drawn smaller.
COMPANIONS = {
    "bicycle": ("person",),
    "boat": ("bird", "person"),
    "bottle": ("diningtable",),
    "bus": ("car",),
    "car": ("motorbike", "person"),
    "cat": ("sofa", "bottle"),
    "chair": ("pottedplant", "cat"),
    "cow": ("sheep",),
    "diningtable": ("chair", "bottle"),
    "dog": ("person", "cat"),
    "horse": ("person",),
    "motorbike": ("person",),
    "person": ("dog", "bicycle"),
    "sheep": ("dog",),
    "sofa": ("pottedplant", "tvmonitor"),
    "train": ("person",),
    "tvmonitor": ("chair",),
}
# Things that come in any colour.
PAINTED = ("boat", "bicycle", "bottle", "bus", "car", "chair", "motorbike", "sofa", "train")
# Pictures of other kinds than an RGB JPEG: what readers get wrong.
PNG_EVERY = 8
SPECIAL = {3: "palette", 11: "alpha", 19: "grey", 27: "rotated", 36: "grey-jpeg", 52: "rotated"}


class Chance:
    """Choices from ``random()`` alone, whose sequence Python guarantees."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def real(self, low: float, high: float) -> float:
        """Return a number from ``[low, high)``."""
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, both included."""
        return low + int(self._random() * (high - low + 1))

    def one(self, items):
        """Return one of the items."""
        return items[int(self._random() * len(items))]

    def yes(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random() < probability

    def shuffled(self, items) -> list:
        """Return the items in another order."""
        return [item for _, item in sorted((self._random(), item) for item in items)]


class Thing(NamedTuple):
    """One object of a picture: its class, its full-size layer, and where it was cut off."""

    name: str
    layer: Image.Image
    whole: int
    inside: int
    cut: bool


class Marked(NamedTuple):
    """One object of an annotation; the box is VOC's: 1-based, both ends included."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    occluded: bool
    difficult: bool


# ---- backgrounds -------------------------------------------------------------------------------


def blend(a: Color, b: Color, t: float) -> Color:
    """Return the colour at ``t`` (0 to 1) between two."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))


def gradient(size: tuple[int, int], top: Color, bottom: Color) -> Image.Image:
    """Return a picture that runs from one colour to another, downwards."""
    column = Image.new("RGB", (1, size[1]))
    for y in range(size[1]):
        column.putpixel((0, y), blend(top, bottom, y / (size[1] - 1)))
    return column.resize(size)


def clouds(chance: Chance, size: tuple[int, int], cells: int) -> Image.Image:
    """Return soft grey noise, mode L, with about so many waves across."""
    small = Image.new("L", (cells, cells))
    small.putdata([chance.whole(0, 255) for _ in range(cells * cells)])
    return small.resize(size, Image.Resampling.BICUBIC)


def hills(chance: Chance, canvas: Image.Image, y: int, color: Color) -> None:
    """Draw a rolling horizon whose middle height is at ``y``."""
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    for _ in range(4):
        middle, radius = chance.whole(0, width), chance.whole(width // 4, width // 2)
        top = y - chance.whole(0, height // 10)
        shade = blend(color, (255, 255, 255), chance.real(0.0, 0.22))
        draw.ellipse((middle - radius, top, middle + radius, top + radius), fill=shade)
    draw.rectangle((0, y + height // 14, width, height), fill=color)


def sky(chance: Chance, size: tuple[int, int]) -> Image.Image:
    """Return a sky at some hour of the day, with clouds."""
    top, low = chance.one(
        (
            ((74, 144, 217), (207, 232, 252)),
            ((108, 172, 228), (246, 249, 253)),
            ((64, 98, 168), (255, 190, 140)),
            ((136, 162, 190), (224, 228, 232)),
            ((38, 54, 104), (140, 112, 168)),
        )
    )
    canvas = gradient(size, top, low)
    mask = clouds(chance, size, chance.whole(5, 8)).point(lambda v: max(0, v - 150) * 2)
    canvas.paste(blend(low, (255, 255, 255), 0.7 if sum(low) > 500 else 0.05), mask=mask)
    return canvas


def sea(chance: Chance, size: tuple[int, int]) -> Image.Image:
    """Return sky over water."""
    canvas = sky(chance, size)
    width, height = size
    line = round(height * chance.real(0.45, 0.62))
    deep = chance.one(((24, 92, 138), (32, 124, 140), (44, 84, 118)))
    water = gradient((width, height - line), blend(deep, (255, 255, 255), 0.35), deep)
    draw = ImageDraw.Draw(water)
    for _ in range(26):
        x, y = chance.whole(-20, width), chance.whole(4, water.height)
        length = 8 + 40 * y // water.height
        light = blend(deep, (255, 255, 255), chance.real(0.3, 0.6))
        draw.arc((x, y, x + length, y + 8), 200, 340, fill=light, width=2)
    canvas.paste(water, (0, line))
    return canvas


def meadow(chance: Chance, size: tuple[int, int]) -> Image.Image:
    """Return hills and grass under a sky."""
    canvas = sky(chance, size)
    width, height = size
    green = chance.one(((98, 158, 70), (126, 172, 82), (150, 160, 74), (72, 132, 84)))
    line = round(height * chance.real(0.42, 0.6))
    hills(chance, canvas, line, green)
    draw = ImageDraw.Draw(canvas)
    for _ in range(60):
        x, y = chance.whole(0, width), chance.whole(line + height // 10, height)
        blade = blend(green, (20, 60, 20), chance.real(0.1, 0.45))
        draw.line((x, y, x + chance.whole(-3, 3), y - chance.whole(4, 9)), fill=blade, width=2)
    return canvas


def road(chance: Chance, size: tuple[int, int]) -> Image.Image:
    """Return a street before houses or hills."""
    canvas = sky(chance, size)
    width, height = size
    line = round(height * chance.real(0.58, 0.68))
    draw = ImageDraw.Draw(canvas)
    if chance.yes(0.6):
        x = -chance.whole(0, 20)
        while x < width:
            wide, tall = chance.whole(34, 62), chance.whole(height // 5, height // 2)
            wall = chance.one(
                ((196, 120, 96), (214, 186, 148), (152, 160, 172), (176, 146, 128), (222, 208, 190))
            )
            draw.rectangle((x, line - tall, x + wide, line), fill=wall)
            for wx in range(x + 6, x + wide - 9, 14):
                for wy in range(line - tall + 8, line - 14, 18):
                    pane = chance.one(((250, 236, 170), (92, 108, 128), (120, 140, 160)))
                    draw.rectangle((wx, wy, wx + 7, wy + 9), fill=pane)
            x += wide + chance.whole(0, 6)
    else:
        hills(chance, canvas, line - height // 12, chance.one(((110, 150, 90), (140, 140, 100))))
    tar = chance.one(((92, 94, 100), (112, 110, 108), (78, 82, 92)))
    draw.rectangle((0, line, width, line + 7), fill=(186, 184, 178))
    draw.rectangle((0, line + 8, width, height), fill=tar)
    middle = (line + height) // 2 + 6
    for x in range(-chance.whole(0, 30), width, 46):
        draw.polygon(
            ((x, middle + 4), (x + 26, middle + 4), (x + 28, middle), (x + 2, middle)),
            fill=(232, 228, 214),
        )
    return canvas


def room(chance: Chance, size: tuple[int, int]) -> Image.Image:
    """Return a wall, a floor, and sometimes a window or a rug."""
    width, height = size
    wall = chance.one(
        ((226, 214, 196), (190, 208, 212), (214, 198, 206), (204, 214, 190), (238, 226, 190))
    )
    canvas = gradient(size, blend(wall, (255, 255, 255), 0.35), wall)
    draw = ImageDraw.Draw(canvas)
    line = round(height * chance.real(0.62, 0.72))
    if chance.yes(0.45):
        stripe = blend(wall, (120, 100, 90), 0.14)
        for x in range(0, width, 24):
            draw.rectangle((x, 0, x + 10, line), fill=stripe)
    if chance.yes(0.5):
        x, y = chance.whole(8, width // 2), chance.whole(8, height // 8)
        wide, tall = width // 4, height // 3
        glass = gradient((wide, tall), (150, 200, 240), (230, 244, 252))
        draw.rectangle((x - 4, y - 4, x + wide + 3, y + tall + 3), fill=(250, 248, 244))
        canvas.paste(glass, (x, y))
        draw.line((x + wide // 2, y, x + wide // 2, y + tall), fill=(250, 248, 244), width=3)
        draw.line((x, y + tall // 2, x + wide, y + tall // 2), fill=(250, 248, 244), width=3)
    floor = chance.one(((158, 112, 74), (184, 142, 98), (128, 96, 76), (170, 164, 158)))
    draw.rectangle((0, line, width, height), fill=floor)
    draw.rectangle((0, line - 4, width, line), fill=blend(wall, (255, 255, 255), 0.7))
    for y in range(line + 10, height, 14):
        draw.line((0, y, width, y), fill=blend(floor, (0, 0, 0), 0.14))
    if chance.yes(0.45):
        rug = chance.one(((176, 72, 70), (70, 104, 150), (96, 136, 110), (206, 160, 84)))
        box = (width // 8, line + (height - line) // 3, width * 7 // 8, height - 6)
        draw.ellipse(box, fill=rug)
        inner = (box[0] + 14, box[1] + 5, box[2] - 14, box[3] - 5)
        draw.ellipse(inner, outline=blend(rug, (255, 255, 255), 0.5), width=2)
    return canvas


def pattern(chance: Chance, size: tuple[int, int]) -> Image.Image:
    """Return paper, stripes, dots or mottled colour: a background that tells nothing."""
    width, height = size
    base = chance.one(
        (
            (244, 214, 160),
            (178, 212, 190),
            (238, 186, 176),
            (186, 200, 232),
            (214, 196, 228),
            (236, 232, 220),
            (70, 84, 108),
            (60, 100, 96),
            (250, 250, 248),
        )
    )
    other = blend(base, chance.one(((255, 255, 255), (40, 40, 60))), chance.real(0.15, 0.3))
    canvas = gradient(size, base, other)
    draw = ImageDraw.Draw(canvas)
    kind = chance.one(("mottled", "stripes", "dots", "checks", "plain"))
    if kind == "mottled":
        canvas = ImageOps.colorize(clouds(chance, size, chance.whole(8, 18)), base, other)
    elif kind == "stripes":
        step, slant = chance.whole(18, 34), chance.whole(-height, height)
        for x in range(-height - width, 2 * width + height, step):
            draw.line((x, 0, x + slant, height), fill=other, width=step // 2)
    elif kind == "dots":
        step = chance.whole(20, 34)
        for row, y in enumerate(range(0, height + step, step)):
            for x in range((row % 2) * step // 2, width + step, step):
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=other)
    elif kind == "checks":
        step = chance.whole(22, 40)
        for row, y in enumerate(range(0, height, step)):
            for x in range((row % 2) * step, width, 2 * step):
                draw.rectangle((x, y, x + step - 1, y + step - 1), fill=other)
    return canvas


# ---- pictograms --------------------------------------------------------------------------------


def cropped(picture: Image.Image) -> Image.Image:
    """Return an RGBA picture without its transparent margin."""
    return picture.crop(picture.getchannel("A").getbbox())


class Pictograms:
    """The pictograms, RGBA without margin, each rendered once.

    Parameters
    ----------
    font : Path
        Noto Color Emoji with bitmaps (CBDT), which come in one size, 109.

    Raises
    ------
    SystemExit
        The font is not there, or lacks a character.
    """

    def __init__(self, font: Path) -> None:
        try:
            # The basic layout is in every Pillow; a better one depends on the machine.
            self._font = ImageFont.truetype(font, 109, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise SystemExit(
                f"{font}: {error}. Install Debian's fonts-noto-color-emoji, or name the file "
                "with --font."
            ) from None
        self._done: dict[str, Image.Image] = {}

    def __call__(self, name: str) -> Image.Image:
        """Return the pictogram: an emoji, ``table:KIND`` or ``pot:EMOJI``."""
        if name not in self._done:
            kind, _, rest = name.partition(":")
            if kind == "table":
                picture = self._table(rest)
            elif kind == "pot":
                picture = self._pot(rest)
            else:
                picture = self._emoji(name)
            self._done[name] = cropped(picture)
        return self._done[name]

    def _emoji(self, character: str) -> Image.Image:
        canvas = Image.new("RGBA", (180, 160))
        ImageDraw.Draw(canvas).text(
            (12, 12), character, font=self._font, embedded_color=True, fill=(0, 0, 0, 255)
        )
        if canvas.getchannel("A").getbbox() is None:
            raise SystemExit(f"the font has no U+{ord(character):04X}")
        return canvas

    def _pot(self, flower: str) -> Image.Image:
        canvas = Image.new("RGBA", (560, 640))
        plant = cropped(self._emoji(flower))
        plant = plant.resize((plant.width * 3, plant.height * 3), Image.Resampling.BICUBIC)
        canvas.alpha_composite(plant, ((560 - plant.width) // 2, max(0, 420 - plant.height)))
        draw = ImageDraw.Draw(canvas)
        draw.polygon(((170, 420), (390, 420), (350, 600), (210, 600)), fill=(196, 98, 60))
        draw.polygon(((330, 420), (390, 420), (350, 600), (312, 600)), fill=(168, 80, 48))
        draw.rounded_rectangle((150, 384, 410, 436), 14, fill=(214, 116, 74))
        draw.rounded_rectangle((150, 420, 410, 436), 8, fill=(176, 86, 54))
        return canvas.reduce(4)

    def _table(self, kind: str) -> Image.Image:
        canvas = Image.new("RGBA", (720, 520))
        draw = ImageDraw.Draw(canvas)
        wood, dark = (166, 108, 62), (124, 78, 44)
        if kind == "round":
            draw.rectangle((336, 230, 384, 430), fill=dark)
            draw.polygon(((336, 400), (384, 400), (520, 490), (200, 490)), fill=dark)
            draw.ellipse((40, 150, 680, 300), fill=dark)
            draw.ellipse((40, 130, 680, 280), fill=(236, 236, 240))
            draw.ellipse((70, 142, 650, 264), fill=(250, 250, 252))
            dishes = ((190, 150, 1.1), (360, 122, 1.2), (530, 150, 1.1))
        elif kind == "square":
            for x in (70, 610):
                draw.rectangle((x, 220, x + 40, 490), fill=dark)
            draw.polygon(((130, 130), (590, 130), (690, 230), (30, 230)), fill=wood)
            draw.rectangle((30, 230, 690, 262), fill=dark)
            draw.polygon(((290, 130), (430, 130), (460, 230), (260, 230)), fill=(200, 70, 66))
            draw.rectangle((260, 230, 460, 300), fill=(176, 56, 54))
            dishes = ((170, 128, 1.1), (360, 122, 1.1), (550, 128, 1.1))
        else:
            for x in (110, 530):
                draw.line((x, 490, x + 40, 230), fill=dark, width=24)
                draw.line((x + 80, 490, x + 40, 230), fill=dark, width=24)
            draw.rectangle((20, 206, 700, 248), fill=wood)
            draw.rectangle((20, 236, 700, 248), fill=dark)
            dishes = ((150, 96, 1.0), (360, 86, 1.1), (570, 96, 1.0))
        for (x, y, scale), dish in zip(
            dishes, "🍲🍰🍵" if kind != "round" else "🍝🥗🍲", strict=True
        ):
            food = cropped(self._emoji(dish))
            food = food.resize((round(food.width * scale), round(food.height * scale)))
            canvas.alpha_composite(food, (x - food.width // 2, y))
        return canvas.reduce(4)


# ---- pictures ----------------------------------------------------------------------------------


def place(
    chance: Chance, name: str, glyph: Image.Image, size: tuple[int, int], span: float, *, cut: float
) -> Thing:
    """Return the pictogram as a layer of the picture, scaled, turned and put somewhere.

    Parameters
    ----------
    chance : Chance
    name : str
        The class.
    glyph : Image.Image
        RGBA, without margin.
    size : tuple of int
        Width and height of the picture, pixels.
    span : float
        The pictogram's longer side, as a share of the picture's shorter one.
    cut : float
        Share of the pictogram that may hang over an edge; 0 keeps all of it inside.

    Returns
    -------
    Thing
    """
    width, height = size
    if chance.yes(0.5):
        glyph = ImageOps.mirror(glyph)
    if name in PAINTED and chance.yes(0.5):
        glyph = painted(glyph, chance.whole(20, 235))
    factor = span * min(size) / max(glyph.size)
    target = tuple(max(3, round(side * factor)) for side in glyph.size)
    glyph = glyph.resize(target, Image.Resampling.BICUBIC)
    if chance.yes(0.45):
        angle = chance.real(-16, 16) if chance.yes(0.8) else chance.real(-60, 60)
        glyph = glyph.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        glyph = cropped(glyph)
    x = round(chance.real(2, max(3, width - glyph.width - 2)))
    y = round((height - glyph.height) * chance.real(0.35, 0.95))
    if cut:
        side, over = chance.whole(0, 2), cut
        if side == 0:
            x = -round(glyph.width * over)
        elif side == 1:
            x = width - glyph.width + round(glyph.width * over)
        else:
            y = height - glyph.height + round(glyph.height * over)
    layer = Image.new("RGBA", size)
    layer.paste(glyph, (x, y))
    inside = (max(0, -x), max(0, -y), min(glyph.width, width - x), min(glyph.height, height - y))
    return Thing(
        name,
        layer,
        opaque(glyph.getchannel("A")),
        opaque(layer.getchannel("A")),
        inside != (0, 0, *glyph.size),
    )


def painted(picture: Image.Image, turn: int) -> Image.Image:
    """Return an RGBA picture with its hues turned by ``turn`` 256ths of the circle."""
    hue, saturation, value = picture.convert("RGB").convert("HSV").split()
    hue = hue.point(lambda v: (v + turn) % 256)
    result = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    result.putalpha(picture.getchannel("A"))
    return result


def opaque(alpha: Image.Image) -> int:
    """Return how many pixels of a mask are more opaque than not."""
    return sum(alpha.histogram()[128:])


def overlap(thing: Thing, others: list[Thing]) -> int:
    """Return how many pixels of the others a thing would hide."""
    alpha = thing.layer.getchannel("A")
    return sum(opaque(ImageChops.multiply(alpha, one.layer.getchannel("A"))) for one in others)


def shadow(canvas: Image.Image, layer: Image.Image) -> None:
    """Darken the ground under an object."""
    left, _, right, lower = layer.getchannel("A").getbbox()
    mask = Image.new("L", canvas.size)
    if right - left < 16:
        return
    deep = max(3, (right - left) // 12)
    ImageDraw.Draw(mask).ellipse((left + deep, lower - deep, right - deep, lower + deep), fill=90)
    canvas.paste((20, 20, 30), mask=mask.filter(ImageFilter.BoxBlur(3)))


def compose(
    chance: Chance, canvas: Image.Image, things: list[Thing], *, grounded: bool
) -> list[Marked]:
    """Paste the things, first to last, and return what is seen of each."""
    marked = []
    for index, thing in enumerate(things):
        if grounded:
            shadow(canvas, thing.layer)
        canvas.paste(thing.layer, mask=thing.layer.getchannel("A"))
        seen = thing.layer.getchannel("A").point(lambda v: 255 * (v >= 128))
        for later in things[index + 1 :]:
            seen = ImageChops.subtract(seen, later.layer.getchannel("A"))
        seen = seen.point(lambda v: 255 * (v >= 128))
        box = seen.getbbox()
        if box is None:
            continue
        left, upper, right, lower = box
        share = opaque(seen) / thing.whole
        small = max(right - left, lower - upper) < 24
        marked.append(
            Marked(
                thing.name,
                (left + 1, upper + 1, right, lower),
                truncated=thing.cut,
                occluded=opaque(seen) < 0.95 * thing.inside,
                difficult=small or share < 0.45,
            )
        )
    return marked


def encode(picture: Image.Image, kind: str) -> bytes:
    """Return the file's bytes: ``jpeg``, ``png`` or one of the special kinds."""
    out = BytesIO()
    if kind == "palette":
        picture.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    elif kind == "grey":
        picture.convert("L").save(out, "PNG", optimize=True)
    elif kind in ("alpha", "png"):
        picture.save(out, "PNG", optimize=True)
    elif kind == "grey-jpeg":
        picture.convert("L").save(out, "JPEG", quality=84, optimize=True)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned 90° clockwise for viewing
        turned = picture.transpose(Image.Transpose.ROTATE_90)
        turned.save(out, "JPEG", quality=84, optimize=True, exif=exif)
    else:
        picture.save(out, "JPEG", quality=84, optimize=True)
    return out.getvalue()


def posterized(picture: Image.Image) -> Image.Image:
    """Return the picture in few colours, so that as a PNG it stays small."""
    return picture.quantize(48, dither=Image.Dither.NONE).convert("RGB")


def draw_picture(
    chance: Chance, pictograms: Pictograms, number: int, name: str, variant: int
) -> tuple[str, bytes, tuple[int, int], int, list[Marked]]:
    """Return suffix, bytes, upright size, number of channels and objects of one picture."""
    size = chance.one(SIZES)
    scene = next(kind for kind, names in SCENES.items() if name in names)
    if chance.yes(0.38):
        scene = "pattern"
    kind = SPECIAL.get(number, "png" if number % PNG_EVERY == 0 else "jpeg")
    canvas = globals()[scene](chance, size)

    glyph = pictograms(GLYPHS[name][variant % len(GLYPHS[name])])
    cut = chance.real(0.12, 0.4) if chance.yes(0.14) else 0.0
    seconds = [chance.one(COMPANIONS[name])] if name in COMPANIONS and chance.yes(0.36) else []
    if chance.yes(0.16):
        seconds.append(name)
    span = chance.real(0.48, 0.64) if seconds else chance.real(0.5, 0.82)
    things = [place(chance, name, glyph, size, span, cut=cut)]
    for second in seconds:
        glyph = pictograms(chance.one(GLYPHS[second]))
        span, cut = chance.real(0.26, 0.42), 0.0
        if chance.yes(0.3):  # hard to see: cut off for the most part, or tiny
            span, cut = chance.one(((span, 0.68), (0.075, 0.0)))
        tries = [place(chance, second, glyph, size, span, cut=cut) for _ in range(8)]
        things.append(min(tries, key=lambda one: overlap(one, things)))
    grounded = scene in ("road", "meadow", "room") and name not in SCENES["sky"]
    marked = compose(chance, canvas, things, grounded=grounded)

    if kind == "alpha":
        backdrop = Image.new("L", size)
        ImageDraw.Draw(backdrop).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 40, fill=255)
        canvas = posterized(canvas)
        canvas.putalpha(backdrop)
    elif kind == "png":
        canvas = posterized(canvas)
    data = encode(canvas, kind)
    suffix = ".jpg" if data.startswith(b"\xff\xd8") else ".png"
    depth = {"grey": 1, "grey-jpeg": 1, "alpha": 4}.get(kind, 3)
    return suffix, data, size, depth, marked


def annotation(filename: str, size: tuple[int, int], depth: int, objects: list[Marked]) -> str:
    """Return the annotation file's text, as VOC2012 writes them."""
    lines = [
        "<annotation>",
        "\t<folder>VOCsample</folder>",
        f"\t<filename>{escape(filename)}</filename>",
        "\t<source>",
        "\t\t<database>imgsearch sample</database>",
        "\t\t<annotation>imgsearch sample</annotation>",
        "\t\t<image>Noto Color Emoji</image>",
        "\t</source>",
        "\t<size>",
        f"\t\t<width>{size[0]}</width>",
        f"\t\t<height>{size[1]}</height>",
        f"\t\t<depth>{depth}</depth>",
        "\t</size>",
        "\t<segmented>0</segmented>",
    ]
    for thing in objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
        lines += [
            "\t<object>",
            f"\t\t<name>{thing.name}</name>",
            "\t\t<pose>Unspecified</pose>",
            f"\t\t<truncated>{thing.truncated:d}</truncated>",
            f"\t\t<occluded>{thing.occluded:d}</occluded>",
            f"\t\t<difficult>{thing.difficult:d}</difficult>",
            "\t\t<bndbox>",
            *(f"\t\t\t<{tag}>{value}</{tag}>" for tag, value in corners),
            "\t\t</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def image_sets(objects: dict[str, list[Marked]], sets: dict[str, list[str]]) -> dict[str, str]:
    """Return the files of ``ImageSets/Main`` by name."""
    files = {}
    for which, stems in sets.items():
        files[f"{which}.txt"] = "".join(f"{stem}\n" for stem in stems)
        for name in GLYPHS:
            lines = []
            for stem in stems:
                flags = [thing.difficult for thing in objects[stem] if thing.name == name]
                lines.append(f"{stem} {-1 if not flags else 0 if all(flags) else 1:2d}\n")
            files[f"{name}_{which}.txt"] = "".join(lines)
    return files


def make(root: Path, font: Path = FONT) -> None:
    """Draw the whole sample into a folder, replacing what is there.

    Parameters
    ----------
    root : Path
        The VOC root to make: JPEGImages, Annotations and ImageSets are written into it.
    font : Path
        Noto Color Emoji.

    Raises
    ------
    SystemExit
        The font cannot be used.
    """
    pictograms = Pictograms(font)
    chance = Chance(SEED)
    plan = chance.shuffled((name, variant) for name in GLYPHS for variant in range(PER_CLASS))
    for part in ("JPEGImages", "Annotations", "ImageSets"):
        shutil.rmtree(root / part, ignore_errors=True)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    objects: dict[str, list[Marked]] = {}
    sets: dict[str, list[str]] = {"train": [], "val": [], "trainval": []}
    for number, (name, variant) in enumerate(plan, 1):
        stem = f"2026_{number:06d}"
        # A generator of its own for each picture: changing one leaves the others as they are.
        own = Chance(SEED * 1000 + number)
        suffix, data, size, depth, marked = draw_picture(own, pictograms, number, name, variant)
        (root / "JPEGImages" / (stem + suffix)).write_bytes(data)
        text = annotation(stem + suffix, size, depth, marked)
        (root / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8", newline="\n")
        objects[stem] = marked
        # Each pictogram is in both halves where there are two pictures of it.
        kinds = len(GLYPHS[name])
        half = (variant + (0 if kinds % 2 else variant // kinds)) % 2
        sets[("train", "val")[half]].append(stem)
        sets["trainval"].append(stem)
    for filename, text in image_sets(objects, sets).items():
        path = root / "ImageSets" / "Main" / filename
        path.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Make the sample from the command line."""
    parser = argparse.ArgumentParser(description="Draw the sample in PASCAL VOC layout.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parent / "VOCsample")
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmaps")
    arguments = parser.parse_args()
    make(arguments.root, arguments.font)
    files = sorted((arguments.root / "JPEGImages").iterdir())
    print(
        f"{arguments.root}: {len(files)} pictures, {sum(f.stat().st_size for f in files):,} bytes"
    )
    if hashlib.sha256(arguments.font.read_bytes()).hexdigest() != FONT_SHA256:
        print("The font is another one than the committed sample was drawn with.")


if __name__ == "__main__":
    main()
