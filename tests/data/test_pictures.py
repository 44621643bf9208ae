"""Pixels are those that the trainers' own transform gives, and a file that holds several images
gives them all."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.data import pictures, sources
from afterimage.data.pictures import Transform

PAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


def encoded(pixels, kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    first, *others = (
        Image.fromarray(image) for image in (pixels if isinstance(pixels, list) else [pixels])
    )
    more = {"save_all": True, "append_images": others} if others else {}
    first.save(stream, kind, **more, **options)
    return stream.getvalue()


def read(path, **options):
    return sources.read(config.ImageFolder(kind="image_folder", path=str(path)), **options)


# ---- the resize ----------------------------------------------------------------------------------

Y, X = np.mgrid[:9, :14]
WIDE = ((7 * X * X + 13 * Y * X + 29 * Y) % 256).astype(np.uint8)

# torchvision 0.28.0 on Pillow images: Resize(4, interpolation, antialias=True), then CenterCrop(4);
# or Resize((4, 4))
TORCHVISION = {
    ("wide", "bilinear"): [
        [105, 131, 141, 154],
        [117, 121, 140, 154],
        [119, 110, 121, 131],
        [130, 143, 135, 113],
    ],
    ("wide", "bicubic"): [
        [103, 136, 141, 154],
        [121, 115, 141, 159],
        [117, 108, 120, 129],
        [132, 145, 134, 111],
    ],
    ("wide", "lanczos"): [
        [100, 141, 140, 155],
        [126, 107, 143, 163],
        [115, 109, 118, 125],
        [130, 147, 134, 114],
    ],
    ("wide", "box"): [
        [102, 136, 139, 144],
        [129, 131, 135, 158],
        [100, 127, 132, 129],
        [151, 136, 129, 106],
    ],
    ("wide", "none"): [
        [65, 124, 144, 156],
        [123, 118, 146, 141],
        [130, 112, 122, 136],
        [129, 139, 129, 124],
    ],
    ("tall", "bilinear"): [
        [104, 117, 119, 130],
        [132, 122, 109, 143],
        [141, 141, 120, 135],
        [154, 154, 131, 112],
    ],
    ("tall", "none"): [
        [65, 123, 130, 129],
        [124, 119, 112, 139],
        [144, 146, 122, 128],
        [156, 141, 135, 124],
    ],
}


@pytest.mark.parametrize(("form", "how"), TORCHVISION)
def test_resize_equals_torchvisions(form, how):
    raw = encoded(WIDE if form == "wide" else WIDE.T.copy())
    transform = Transform(side=4, crop="none") if how == "none" else Transform(side=4, filter=how)
    (picture,) = pictures.decode(raw, transform)
    assert picture.pixels[..., 0].tolist() == TORCHVISION[form, how]
    assert picture.resized


def test_enlarging_equals_torchvisions():
    (picture,) = pictures.decode(encoded(WIDE), Transform(side=11))
    assert picture.pixels[0, :, 0].tolist() == [41, 73, 114, 166, 227, 170, 121, 172, 59, 161, 121]


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("train.zip", 16, "a4f44eccf99802cd56239d100619bc50ee709eb23c92c19107f40a2086780cf7"),
        (
            "../emoji/test.parquet",
            20,
            "540282b14cdc21e4ef99301c007b6f0d3e451926ab30a87f93cdf3cc7d931314",
        ),
    ],
)
def test_real_files_get_the_pixels_that_torchvision_gives_them(real_client, name, side, expected):
    path = str(real_client / name)
    if name.endswith("zip"):
        source = config.ImageFolder(kind="image_folder", path=path)
    else:
        source = config.Parquet(kind="parquet", path=path)
    images, manifest = sources.read(source, resize=side)
    assert hashlib.sha256(images.pixels.tobytes()).hexdigest() == expected
    assert manifest["resize"] == {
        "side": side,
        "filter": "bilinear",
        "crop": "centre",
        "images": len(images),
    }


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(32, 32, 16), (31, 50, 13), (64, 23, 16), (20, 20, 33), (17, 40, 8)],
)
def test_the_default_is_an_antialiased_bilinear_resize_to_a_rounding_step(height, width, side):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (picture,) = pictures.decode(encoded(pixels), Transform(side=side))
    short, long = sorted((height, width))
    size = [side if length == short else int(side * long / short) for length in (height, width)]
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)[
        0
    ].permute(1, 2, 0)
    top, left = (round((length - side) / 2) for length in size)
    wanted = resized[top : top + side, left : left + side].numpy()
    # Pillow rounds twice, after the rows and after the columns: half a step each, and what the
    # weights' own rounding adds
    assert np.abs(picture.pixels - wanted).max() < 1.01


def test_images_that_have_the_size_stay_as_they_are():
    (picture,) = pictures.decode(encoded(PAGES[0, :6]), Transform(side=6, filter="lanczos"))
    np.testing.assert_array_equal(picture.pixels, PAGES[0, :6])
    assert not picture.resized


def test_colour_comes_before_size():
    (grey,) = pictures.decode(encoded(PAGES[0]), Transform(colour="grey", side=4))
    (again,) = pictures.decode(
        encoded(np.asarray(Image.fromarray(PAGES[0]).convert("L"))), Transform(side=4)
    )
    np.testing.assert_array_equal(grey.pixels, again.pixels)


def test_a_turned_photograph_is_set_upright():
    turned = Image.fromarray(PAGES[0]).getexif()
    turned[274] = 6  # orientation: the right side is up
    (picture,) = pictures.decode(encoded(PAGES[0], exif=turned), Transform())
    np.testing.assert_array_equal(picture.pixels, np.rot90(PAGES[0], -1))


def test_dropped_transparency_is_counted(tmp_path):
    half = np.dstack([PAGES[0], np.full((8, 6), 128, np.uint8)])
    opaque = np.dstack([PAGES[1], np.full((8, 6), 255, np.uint8)])
    palette = Image.fromarray(PAGES[2]).convert("P")
    (tmp_path / "a.png").write_bytes(encoded(half))
    (tmp_path / "b.png").write_bytes(encoded(opaque))
    palette.save(tmp_path / "c.png", transparency=palette.getpixel((0, 0)))
    images, manifest = read(tmp_path)
    np.testing.assert_array_equal(images.pixels[:2], PAGES[:2])
    assert manifest["transparent"] == 2


# ---- files with several images -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("a.tif", "TIFF", {}), ("a.png", "PNG", {}), ("a.webp", "WEBP", {"lossless": True})],
)
def test_every_page_and_frame_is_an_image(tmp_path, name, kind, options):
    (tmp_path / name).write_bytes(encoded(list(PAGES), kind, **options))
    (tmp_path / "z.png").write_bytes(encoded(PAGES[0]))
    images, manifest = read(tmp_path)
    np.testing.assert_array_equal(images.pixels[:5], PAGES)
    assert images.ids.tolist() == list(range(6))
    assert manifest["names"] == [*(f"{name}[{page}]" for page in range(5)), "z.png"]
    assert manifest["frames"] == {name: 5}


def test_every_frame_of_a_gif_is_an_image(tmp_path):
    flat = [np.full((8, 6, 3), 50 * step, np.uint8) for step in range(5)]
    (tmp_path / "a.gif").write_bytes(encoded(flat, "GIF"))
    np.testing.assert_array_equal(read(tmp_path / "a.gif")[0].pixels, flat)


def test_a_preview_inside_a_jpeg_and_a_reduced_page_are_left_out_by_name(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded([PAGES[0], PAGES[1, :4, :3]], "MPO"))
    pages = [Image.fromarray(PAGES[0]), Image.fromarray(PAGES[1, :4, :3])]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    with io.BytesIO() as stream:
        pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
        (tmp_path / "scan.tif").write_bytes(stream.getvalue())
    images, manifest = read(tmp_path)
    assert images.pixels.shape == (2, 8, 6, 3)
    assert manifest["ignored"] == [
        {"name": "photo.jpg[1]", "reason": pictures.PREVIEW},
        {"name": "scan.tif[1]", "reason": pictures.REDUCED},
    ]


def test_pages_of_other_sizes_are_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(encoded([*PAGES[:4], PAGES[4, :5]], "TIFF"))
    with pytest.raises(
        ArtifactError, match=r"1 differ from most: a\.tif\[4\] \(shape 5x6x3, most have 8x6x3\)"
    ):
        read(tmp_path)


# ---- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        *(
            (".jfif", "JPEG"),
            (".JPE", "JPEG"),
            (".avif", "AVIF"),
            (".WebP", "WEBP"),
            (".PPM", "PPM"),
            (".TIF", "TIFF"),
        ),
        *(
            (".jp2", "JPEG2000"),
            (".apng", "PNG"),
            (".bmp", "BMP"),
            (".tga", "TGA"),
            (".pnm", "PPM"),
            (".qoi", "QOI"),
        ),
    ],
)
def test_endings_of_one_format_are_alike(tmp_path, ending, kind):
    (tmp_path / f"a{ending}").write_bytes(encoded(np.full((8, 8, 3), 90, np.uint8), kind))
    images, manifest = read(tmp_path)
    assert np.abs(images.pixels.astype(int) - 90).max() <= 2
    assert manifest["ignored"] == []


@pytest.mark.parametrize("ending", [".pdf", ".eps", ".h5", ".mpg", ".wmf", ".txt", ""])
def test_what_needs_another_program_or_holds_no_pixels_is_no_image(ending):
    assert not pictures.is_image(f"a{ending}")


def test_postscript_behind_an_images_name_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(ArtifactError, match=r"a\.png \(not an image that can be read\)"):
        read(tmp_path)


def test_a_pointer_in_place_of_an_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"
    )
    with pytest.raises(ArtifactError, match=r"a\.png \(a git-lfs pointer"):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about metadata
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(
            ("PNG", {}),
            ("GIF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("TIFF", {}),
            ("WEBP", {}),
            ("AVIF", {}),
        ),
        *(("MPO", {}), ("JPEG2000", {}), ("BMP", {})),
    ],
)
def test_damage_is_always_of_a_kind_that_is_expected(kind, options):
    raw = (
        encoded([PAGES[0], PAGES[1]], kind) if kind == "MPO" else encoded(PAGES[0], kind, **options)
    )
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(150):
        damaged = bytearray(raw)
        for place in rng.integers(0, min(len(raw), 300), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            list(pictures.decode(bytes(damaged), Transform()))
        except pictures.DAMAGE:
            stopped += 1
    assert stopped > 10
