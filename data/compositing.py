"""Puts photographic cut-outs into photographic scenes: perspective, light, shadow, a camera's faults.

Every function draws from the generator it is given and from nothing else. Arithmetic is kept to operations
that every x86-64 machine rounds alike, so that equal versions of numpy and Pillow give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

SIZES = ((160, 120), (160, 120), (160, 112), (120, 160), (144, 144), (160, 128), (128, 160))
SCALE = 2  # scenes are composed larger, so that edges look like those of a reduced photograph
Random = np.random.Generator
Size = tuple[int, int]
Photo = Callable[..., Image.Image]  # one photograph for any of the uses named


def crop_to(rng: Random, image: Image.Image, size: Size, share: tuple[float, float]) -> Image.Image:
    """A random crop of the aspect of `size`, `share` as wide as the largest one, resized to `size`."""
    width, height = image.size
    largest = min(width / size[0], height / size[1])
    zoom = largest * max(rng.uniform(*share), min(1.0, 0.8 / largest))
    crop = (int(size[0] * zoom), int(size[1] * zoom))
    left, top = (int(rng.integers(room - part + 1)) for room, part in zip(image.size, crop, strict=True))
    if rng.random() < 0.5:
        image, left = ImageOps.mirror(image), width - crop[0] - left
    return image.resize(size, Image.Resampling.LANCZOS, (left, top, left + crop[0], top + crop[1]))


def mosaic(image: Image.Image, side: int, copies: int) -> Image.Image:
    """Mirrored copies side by side, so that any photograph tiles without a seam."""
    tile = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    out = Image.new("RGB", (side * copies, side * copies))
    for row in range(copies):
        for column in range(copies):
            part = ImageOps.mirror(tile) if column % 2 else tile
            out.paste(ImageOps.flip(part) if row % 2 else part, (column * side, row * side))
    return out


def surface(rng: Random, image: Image.Image, size: Size) -> Image.Image:
    """The texture seen from above, turned by any angle."""
    wide = mosaic(image, int(rng.uniform(0.8, 1.9) * max(size)), 3)
    turned = wide.rotate(float(rng.uniform(-180, 180)), Image.Resampling.BICUBIC)
    left, top = (turned.width - size[0]) // 2, (turned.height - size[1]) // 2
    left += int(rng.integers(-size[0] // 4, size[0] // 4 + 1))
    top += int(rng.integers(-size[1] // 4, size[1] // 4 + 1))
    return turned.crop((left, top, left + size[0], top + size[1]))


def floor(rng: Random, image: Image.Image, size: Size) -> Image.Image:
    """The texture in perspective, from just below the horizon (top edge) to the camera (bottom edge)."""
    fine = (size[0] * 2, size[1] * 2)
    width, height = fine
    horizon = height / rng.uniform(1.6, 3.2)  # distance of the vanishing line above the top edge
    source = mosaic(image, 640, 5)
    steep = rng.uniform(1.4, 2.0)
    reach = steep * (height + horizon) * height / (horizon * width)  # source rows seen per column in front
    near = min(rng.uniform(350, 600), 2850 / reach)
    fall = steep * near / width * (height + horizon) ** 2
    across = near / width * (height + horizon) / horizon
    middle = source.width / 2 + rng.uniform(-200, 200)
    deepest = source.height - rng.uniform(20, 300) + fall / (height + horizon)
    coefficients = (
        across, middle / horizon, middle - across * width / 2,
        0.0, deepest / horizon, deepest - fall / horizon,
        0.0, 1 / horizon,
    )  # fmt: skip
    seen = source.transform(fine, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    return seen.resize(size, Image.Resampling.BOX)


def room(rng: Random, ground: Image.Image, behind: Image.Image, size: Size) -> tuple[Image.Image, int]:
    """Ground in front of something out of focus; also the height of the line where they meet."""
    line = int(size[1] * rng.uniform(0.28, 0.58))
    blur = rng.uniform(0.5, 5.0)
    canvas = crop_to(rng, behind, size, (0.6, 1.0)).filter(ImageFilter.GaussianBlur(blur))
    plane = floor(rng, ground, (size[0], size[1] - line))
    near = ImageOps.flip(plane).resize(size)  # what the soft edge below reaches for above the line
    near.paste(plane, (0, line))
    far = plane.filter(ImageFilter.GaussianBlur(blur * 0.8))
    depth = np.clip(1 - np.arange(size[1] - line) / ((size[1] - line) * 0.55), 0, 1) * 255
    ramp = Image.fromarray(np.repeat(depth.astype(np.uint8)[:, None], size[0], axis=1))
    near.paste(far, (0, line), ramp)
    edge = np.zeros((size[1], size[0]), np.uint8)
    edge[line:] = 255
    canvas.paste(near, (0, 0), Image.fromarray(edge).filter(ImageFilter.GaussianBlur(0.8 + blur * 0.7)))
    return canvas, line


def scene(rng: Random, photo: Photo, setting: str) -> tuple[Image.Image, int]:
    """A background for a setting, SCALE times the final size, and where its ground begins (0: no ground)."""
    final = SIZES[int(rng.integers(len(SIZES)))]
    size = (final[0] * SCALE, final[1] * SCALE)
    draw, blur = rng.random(), ImageFilter.GaussianBlur(rng.uniform(0.6, 3.5))
    if setting == "swimming":
        return crop_to(rng, photo("water"), size, (0.35, 0.9)).filter(blur), 0
    if setting == "flying":
        return crop_to(rng, photo("sky" if draw < 0.8 else "scene"), size, (0.4, 1.0)).filter(blur), 0
    if setting == "standing" and draw < 0.25:
        return crop_to(rng, photo("field"), size, (0.5, 1.0)).filter(blur), int(size[1] * 0.62)
    if draw < {"indoor": 0.75, "lying": 0.15}.get(setting, 0.0):
        return room(rng, photo("table"), photo("wall"), size)
    if setting in {"standing", "indoor"} or (setting == "lying" and draw < 0.25):
        return room(rng, photo("ground"), photo("field", "scene", "sky", "wall"), size)
    return surface(rng, photo("ground", "table"), size), 0


def fit(rng: Random, cutout: Image.Image, setting: str, size: Size, share: float) -> Image.Image:
    """The stamp flipped, turned and scaled until it covers `share` of the image, or as nearly as it can."""
    if rng.random() < 0.5:
        cutout = ImageOps.mirror(cutout)
    lean = {"standing": 5, "indoor": 5, "flying": 14, "swimming": 18}.get(setting, 180)
    cutout = cutout.rotate(float(rng.uniform(-lean, lean)), Image.Resampling.BICUBIC, expand=True)
    cutout = cutout.crop(cutout.getchannel("A").getbbox())
    covered = int(np.count_nonzero(np.asarray(cutout.getchannel("A")) > 127))
    factor = float(np.sqrt(share * size[0] * size[1] / covered))
    factor = min(factor, 1.25 * SCALE, 0.95 * size[0] / cutout.width, 0.95 * size[1] / cutout.height)
    target = (max(1, round(cutout.width * factor)), max(1, round(cutout.height * factor)))
    return cutout.resize(target, Image.Resampling.LANCZOS)


def lay(rng: Random, cutout: Image.Image, setting: str, size: Size, line: int) -> Image.Image:
    """The stamp on a transparent layer of the image's size; what stands keeps its foot on the ground."""
    over = 0.15 if rng.random() < 0.1 else 0.0  # now and then the frame cuts the object
    spare = (size[0] - cutout.width, size[1] - cutout.height)
    left = int(rng.uniform(-over * cutout.width, spare[0] + over * cutout.width))
    top = int(rng.uniform(-over * cutout.height, spare[1] + over * cutout.height))
    if line:
        lowest = size[1] * 0.97
        foot = rng.uniform(min(lowest, line + 0.3 * (size[1] - line)), lowest)
        top = max(int(foot) - cutout.height, min(2, spare[1]))
    layer = Image.new("RGBA", size)
    layer.paste(cutout, (left, top))
    return layer


def dimmed(share: float) -> list[int]:
    """The lookup table that keeps `share` of each 8-bit value."""
    return [int(value * share) for value in range(256)]


def shadow(rng: Random, alpha: Image.Image, line: int) -> Image.Image:
    """How much light the ground loses (0 to 255): cast aside by what lies, thrown flat by what stands."""
    light = rng.uniform(-1, 1)
    if not line:
        dark = Image.new("L", alpha.size)
        dark.paste(alpha, (int(light * 9), int(rng.uniform(1, 8))))
        return dark.filter(ImageFilter.GaussianBlur(rng.uniform(2.0, 6.0))).point(dimmed(0.55))
    left, top, right, foot = alpha.getbbox()
    flat = max(4, int((foot - top) * rng.uniform(0.12, 0.24)))
    cast = alpha.crop((left, top, right, foot)).resize((right - left, flat), Image.Resampling.BOX)
    lean = light * 1.6
    slant = (1, lean, -lean * flat, 0, 1, 0)
    cast = cast.transform(cast.size, Image.Transform.AFFINE, slant, Image.Resampling.BILINEAR)
    dark = Image.new("L", alpha.size)
    dark.paste(cast, (left, foot - flat + 2))
    dark = dark.filter(ImageFilter.GaussianBlur(rng.uniform(2.5, 5.0))).point(dimmed(0.55))
    contact = Image.new("L", alpha.size)
    strip = max(3, (foot - top) // 14)
    contact.paste(alpha.crop((left, foot - strip, right, foot)), (left, foot - strip + 2))
    contact = contact.filter(ImageFilter.GaussianBlur(2.5)).point(dimmed(0.7))
    return ImageChops.lighter(dark, contact)


def means(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean colour of 8-bit pixels, in integer sums (exact in any order)."""
    weight = weight.astype(np.int64)
    return (pixels.astype(np.int64) * weight[..., None]).sum((0, 1)) / max(1, int(weight.sum()))


def blend(rng: Random, canvas: Image.Image, layer: Image.Image, shade: Image.Image | None) -> Image.Image:
    """Object over background, in the background's light: shadow, its mean colour, and its glow on the rim."""
    ground = np.asarray(canvas).astype(np.float64)
    if shade is not None:
        ground *= 1 - np.asarray(shade)[..., None] / 255 * rng.uniform(0.7, 1.0)
    alpha = layer.getchannel("A").filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.1)))
    colour = np.asarray(layer.convert("RGB"))
    here = means(colour, np.asarray(alpha))
    there = means(np.asarray(canvas), np.ones(alpha.size[::-1], np.uint8))
    pull = rng.uniform(0.05, 0.3)
    gain = np.clip((there + 20) / (here + 20), 0.45, 1.7) * pull + (1 - pull)
    rows, columns = np.mgrid[0 : canvas.height, 0 : canvas.width]
    slope = rng.uniform(-0.25, 0.25, 2)
    light = 1 + slope[0] * (rows / canvas.height - 0.5) + slope[1] * (columns / canvas.width - 0.5)
    lit = colour * gain * light[..., None]
    rim = 1 - np.asarray(alpha.filter(ImageFilter.GaussianBlur(5))).astype(np.float64)[..., None] / 255
    glow = np.asarray(canvas.filter(ImageFilter.GaussianBlur(8))).astype(np.float64)
    lit += (glow - lit) * rim * rng.uniform(0.25, 0.6)
    cover = np.asarray(alpha).astype(np.float64)[..., None] / 255
    return to_image(ground + (lit - ground) * cover)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Rounded and clipped to 8 bits."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def expose(rng: Random, image: Image.Image) -> Image.Image:
    """What a camera adds: focus, the final size, exposure, colour cast, vignette, grain, JPEG."""
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.3)))
    image = image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS)
    pixels = np.asarray(image).astype(np.float64)
    metered = int(np.asarray(image).astype(np.int64).sum()) / pixels.size
    pixels *= np.clip(rng.uniform(85, 150) / metered, 0.7, 1.6) * rng.uniform(0.94, 1.06, 3)
    pixels = (pixels - 120) * rng.uniform(0.9, 1.2) + 120
    rows, columns = np.mgrid[0 : image.height, 0 : image.width]
    distance = (rows / image.height - 0.5) ** 2 + (columns / image.width - 0.5) ** 2
    pixels *= 1 - (distance * rng.uniform(0, 0.6))[..., None]
    # Sums of four uniform integers: bell-shaped, and exact.
    grain = rng.integers(-8, 9, (4, image.height, image.width, 1)).sum(0)
    colours = rng.integers(-8, 9, (4, image.height, image.width, 3)).sum(0)
    strength = rng.uniform(0.03, 0.35)
    pixels += grain * strength + colours * strength * 0.4
    image = to_image(pixels)
    if rng.random() < 0.5:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=int(rng.integers(45, 90)))
        image = Image.open(packed).convert("RGB")
    return image
