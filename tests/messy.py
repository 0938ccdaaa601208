# SPDX-License-Identifier: Apache-2.0
"""Writes a folder of pictures as people have them: mixed sizes and modes, damage, duplicates.

python tests/messy.py DATA.npz FOLDER makes one of the arrays `images` and `labels` of a file.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # of EXIF
NAMES = ("Äpfel", "chats & chiens", "三", "d'été", "e", "f", "g", "h", "i", "j")


def write(root, images, labels, *, unlabeled=0.5, test=0.2, validation=0.1, seed=0):
    """Writes `train`, `unlabeled`, `validation` and `test` below a folder.

    Args:
        root: Path of the folder.
        images: uint8 array `(n, height, width, channels)`.
        labels: Integer array `(n,)`, up to 9. Later classes get fewer labeled pictures.
        unlabeled, test, validation: Fractions of the pictures.
        seed: Integer.

    Returns:
        A dict from file, relative to `root`, to its true class name, of all readable pictures.
    """
    root, rng = pathlib.Path(root), np.random.default_rng(seed)
    truth = {}
    bounds = np.cumsum([unlabeled, test, validation])
    for number, (image, label) in enumerate(zip(images, labels)):
        place = np.searchsorted(bounds, rng.random(), side="right")
        split = ("unlabeled", "test", "validation", "train")[place]
        if split == "train" and rng.random() < label / 20:  # unequal classes
            split = "unlabeled"
        name = NAMES[label]
        folder = root / split / (f"{number % 3}" if split == "unlabeled" else name)
        path = save(folder / f"{number:05d}", image, number, rng)
        truth[path.relative_to(root).as_posix()] = name
    return truth


def save(path, image, number, rng):
    """Saves an image in one of many forms, all of which look nearly alike, and returns its path."""
    picture = Image.fromarray(image.squeeze()).convert("RGB")
    side = int(rng.integers(24, 64))
    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, options = number % 10, {}
    if kind == 0:
        path, options = path.with_suffix(".JPG"), {"quality": 95}
    elif kind == 1:  # stored turned by 90 degrees, to be turned back
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        path, options = path.with_suffix(".jpeg"), {"quality": 95, "exif": exif}
    elif kind == 2:  # transparent where it is white
        picture = picture.convert("RGBA")
        path = path.with_suffix(".png")
    elif kind == 3:
        picture = picture.quantize(64)
        path = path.with_suffix(".gif")
    elif kind == 4:
        picture = picture.convert("CMYK")
        path, options = path.with_suffix(".tif"), {}
    elif kind == 5:  # 16 bits of gray
        values = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        picture = Image.fromarray(values)
        path = path.with_suffix(".png")
    elif kind == 6:  # an animation
        path = path.with_suffix(".webp")
        options = {"save_all": True, "append_images": [Image.new("RGB", picture.size)]}
        options |= {"lossless": True}
    elif kind == 7:
        picture = picture.convert("L")
        path = path.with_suffix(".bmp")
    else:
        path = path.with_suffix(".png")
    picture.save(path, **options)
    return path


def damage(root):
    """Adds what does not belong there, and returns the names of the unreadable pictures."""
    root = pathlib.Path(root)
    first, second = sorted((root / "train").iterdir())[:2]
    good = sorted(first.iterdir())[0].read_bytes()
    whole = next(path for path in sorted(second.iterdir()) if path.suffix == ".png").read_bytes()
    broken = {"cut.png": whole[:100], "empty.jpg": b"", "text.png": b"not a picture"}
    for name, content in broken.items():
        (first / name).write_bytes(content)
    suffix = sorted(first.iterdir())[0].suffix
    (second / f"twin{suffix}").write_bytes(good)  # with another label
    test = sorted((root / "test").iterdir())[0]
    (test / f"leak{suffix}").write_bytes(good)
    (first / ".DS_Store").write_bytes(b"\0")
    (first / "Thumbs.db").write_bytes(b"\0")
    (root / "train" / "notes.txt").write_text("mine")
    (root / "__MACOSX").mkdir()
    return [f"train/{first.name}/{name}" for name in sorted(broken)]


if __name__ == "__main__":
    with np.load(sys.argv[1], allow_pickle=False) as arrays:
        write(sys.argv[2], arrays["images"], arrays["labels"])
    damage(sys.argv[2])
