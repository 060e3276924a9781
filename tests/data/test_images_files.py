"""Image files: finding, naming and saving them."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ssdd.data.find import find_images
from ssdd.data.images import ImageError, read_image, save_image
from ssdd.data.pixels import image_to_tensor
from ssdd.runtime.files import OutputExists
from tests.images import one_line, photo


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        image_to_tensor(bad)
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        save_image(tmp_path / "a.png", bad)
    assert os.listdir(tmp_path) == [], "a file was made of bad pixels"


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(*paths):
    return [f.name for f in find_images(paths)]


def stems(*paths):
    """The output stems, after the checks that hold for all of them."""
    files = find_images(paths)
    for file in files:
        parts = file.output_stem.split("/")
        assert not {"", ".", ".."} & set(parts), f"{file}: the output could leave its folder"
        assert not any(part.startswith(".") for part in parts), f"{file}: the output is hidden"
    assert len({f.output_stem.casefold() for f in files}) == len(files), "one output would replace another"
    assert len({f.name for f in files}) == len(files), "two images have one name"
    return [f.output_stem for f in files]


def test_folders_are_walked_sorted_for_images_only(tmp_path):
    touch(tmp_path, "b.PNG", "a.jpg", "sub/deep/c.webp", "sub/B.Jpeg", "notes.txt", "png", "latent.npz")
    touch(tmp_path, ".hidden.png", ".cache/d.png", "sub/.e.png")
    assert names(tmp_path) == ["a.jpg", "b.PNG", "sub/B.Jpeg", "sub/deep/c.webp"]
    assert find_images([tmp_path])[3].path == tmp_path / "sub" / "deep" / "c.webp", "the path is wrong"
    assert stems(str(tmp_path)) == ["a", "b", "sub/B", "sub/deep/c"]


def test_given_files_are_taken_whatever_they_are_called(tmp_path, monkeypatch):
    touch(tmp_path, "photo", "v1.5", ".dot.png", "sub/x.jpg")
    monkeypatch.chdir(tmp_path / "sub")
    given = ["../photo", "../v1.5", "../.dot.png", "x.jpg"]
    assert names(*given) == ["photo", "v1.5", ".dot.png", "x.jpg"], "files are dropped or out of order"
    assert stems(*given) == ["photo", "v1.5", "dot", "x"], "more than an image's extension was cut off"
    assert names(".") == ["x.jpg"], "the current folder is not walked"


def test_links_are_followed_and_each_real_folder_is_walked_once(tmp_path):
    touch(tmp_path, "data/a.png", "data/real/c.png", "elsewhere/b.png", "elsewhere/deep/d.png")
    data = tmp_path / "data"
    (data / "loop").symlink_to(data)
    (data / "self").symlink_to(data / "self")
    (data / "real" / "up").symlink_to(tmp_path)
    (data / "another").symlink_to(data / "real")
    (data / "other").symlink_to(tmp_path / "elsewhere")
    (data / "other2").symlink_to(tmp_path / "elsewhere")
    (data / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    expected = ["a.png", "link.png", "other/b.png", "other/deep/d.png", "real/c.png"]
    assert names(data) == expected, "a link is passed over, or a folder walked twice"
    (tmp_path / "root").symlink_to(data)
    assert names(tmp_path / "root") == expected, "a link that was given itself is not walked"


def left_out(caplog):
    return [record.getMessage() for record in caplog.records]


def test_other_files_are_named(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "b.JPE", "c.heic", "sub/d.heic", "e.jxl", "f.txt", ".hidden", "i.mp4", "j.weird\nname")
    (tmp_path / "no_extension").write_bytes(b"\xff\xd8\xff\xe0 and more")
    (tmp_path / "README").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "class").symlink_to(tmp_path / "gone")
    assert names(tmp_path) == ["a.jpg", "b.JPE", "no_extension"], "other files are taken, or images left out"
    (line,) = left_out(caplog)
    assert line.startswith(f"{tmp_path}: 9 other files left out: "), "miscounted"
    for part in (".heic 2 (read with the package pillow-heif)", ".jxl 1 (", ".txt 1", "broken link 1", "extension 2"):
        assert part in line, f"{part!r} is not named: {line}"
    assert line.isprintable(), "not one line"
    with pytest.raises(ImageError, match=r"found none; 1 other file left out: \.heic 1") as caught:
        find_images([tmp_path / "sub"])
    one_line(caught, tmp_path / "sub")


def test_many_kinds_of_other_files_are_one_short_line(tmp_path, caplog):
    touch(tmp_path, "a.jpg", *(f"b.{i:03d}" for i in range(500)))
    assert names(tmp_path) == ["a.jpg"]
    (line,) = left_out(caplog)
    assert line.endswith("others 488"), "not all of them are counted"
    assert len(line) < len(str(tmp_path)) + 200, "a line for everyone"


def test_a_plugin_of_pillow_makes_its_files_images(tmp_path, monkeypatch, caplog):
    """As pillow-heif does: it registers a format of the name HEIF."""
    import sys
    import types

    from ssdd.data import find, images

    class HeifFile(PngImageFile):
        format = "HEIF"

        def __init__(self, stream, name):
            stream.seek(12)
            super().__init__(io.BytesIO(stream.read()), name)

    def register():
        Image.register_open("HEIF", HeifFile, lambda prefix: prefix[4:12] == b"ftypheic")

    save_image(tmp_path / "a.png", photo())
    (tmp_path / "b.heic").write_bytes(bytes(4) + b"ftypheic" + (tmp_path / "a.png").read_bytes())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
        patch.setattr(Image, "OPEN", dict(Image.OPEN))
        patch.setattr(Image, "ID", list(Image.ID))
        images._load_plugins.cache_clear()
        find._known_suffixes.cache_clear()
        assert names(tmp_path) == ["a.png", "b.heic"], "what the plugin reads is left out"
        assert np.array_equal(read_image(tmp_path / "b.heic"), photo()), "another image"
        assert not left_out(caplog), "something is left out"
    images._load_plugins.cache_clear()
    find._known_suffixes.cache_clear()


def test_same_stem_with_several_extensions(tmp_path):
    touch(tmp_path, "photo.jpg", "photo.png", "photo.jpg.png", "other.png")
    assert names(tmp_path) == ["other.png", "photo.jpg", "photo.jpg.png", "photo.png"]
    assert stems(tmp_path) == ["other", "photo.jpg", "photo-2.jpg", "photo.png"]


def test_names_that_differ_in_case_alone(tmp_path):
    """Both are kept under their names, but their outputs must not meet on a file system without case."""
    touch(tmp_path, "A.png", "a.png")
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system knows no case")
    assert names(tmp_path) == ["A.png", "a.png"]
    assert stems(tmp_path) == ["A.png", "a-2.png"]


def test_equal_names_from_several_folders(tmp_path):
    touch(tmp_path, "train/x.png", "val/x.png", "val/y.png", "more/val/x.png")
    assert names(tmp_path / "train", tmp_path / "val") == ["train/x.png", "val/x.png", "y.png"]
    given = [tmp_path / "val", tmp_path / "more" / "val"]
    assert names(*given) == ["val/x.png", "y.png", "val/x-2.png"]
    assert stems(*given) == ["val/x", "y", "val/x-2"]


def test_each_file_once(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "sub/b.png")
    monkeypatch.chdir(tmp_path)
    given = [tmp_path, "a.png", tmp_path / "sub", Path("sub") / ".." / "a.png"]
    assert names(*given) == ["a.png", "sub/b.png"], "a file that is reached in several ways is listed twice"


def test_dots_never_lead_out_of_the_output_folder(tmp_path):
    touch(tmp_path, "..png", "...png", "..", "..a.png", ".b/c.png")
    given = [tmp_path / name for name in ("..png", "...png", "..a.png", ".b")]
    assert stems(*given) == ["png", "png-2", "a", "c"]


def test_what_is_not_there(tmp_path):
    with pytest.raises(ImageError) as caught:
        find_images([tmp_path, tmp_path / "missing"])
    one_line(caught, tmp_path / "missing", "nothing at this path")
    assert find_images([tmp_path]) == [], "an empty folder is not an empty list"
    assert find_images([]) == [], "no path is not an empty list"
    with pytest.raises(TypeError, match="sequence of paths"):
        find_images(str(tmp_path))


def test_unreadable_folder_is_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "locked/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError) as caught:
        find_images([tmp_path])
    one_line(caught, tmp_path / "locked", "Permission denied")


def test_found_files_can_be_read(tmp_path):
    save_image(tmp_path / "sub" / "a.png", photo())
    (file,) = find_images([tmp_path])
    assert np.array_equal(read_image(file.path), photo()), "the path of a found file leads elsewhere"


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp"])
def test_lossless_saving_is_exact(tmp_path, suffix):
    path = tmp_path / "new" / f"image{suffix}"
    save_image(str(path), photo()[:, ::-1])
    assert np.array_equal(read_image(path), photo()[:, ::-1]), "the saved pixels changed"
    assert os.listdir(path.parent) == [path.name], "a temporary file was left behind"


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_saved_with_quality_95(tmp_path, suffix):
    save_image(tmp_path / f"a{suffix}", photo())
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.format == "JPEG", "not a JPEG file"
        saved = image.quantization
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "JPEG", quality=95)
    with Image.open(buffer) as image:
        assert saved == image.quantization, "not of quality 95"


def test_format_follows_the_suffix(tmp_path):
    for suffix, kind in ((".png", "PNG"), (".webp", "WEBP")):
        save_image(tmp_path / f"a{suffix}", photo())
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.format == kind, f"{suffix} holds {image.format}"


@pytest.mark.parametrize("name", ["a.gif", "a.npz", "a", "png", "a.png.bak"])
def test_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(ImageError) as caught:
        save_image(tmp_path / name, photo())
    one_line(caught, tmp_path / name, ".png, .jpg, .jpeg, .webp")
    assert os.listdir(tmp_path) == [], "a file was made in an unknown format"


def test_existing_file_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "a.png"
    save_image(path, photo(seed=1))
    with pytest.raises(OutputExists):
        save_image(path, photo(seed=2))
    assert np.array_equal(read_image(path), photo(seed=1)), "an existing file was replaced"
    save_image(path, photo(seed=2), overwrite=True)
    assert np.array_equal(read_image(path), photo(seed=2)), "overwrite=True did not replace the file"


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16383), (".jpg", 65500)])
def test_sides_that_a_format_cannot_hold(tmp_path, suffix, longest):
    save_image(tmp_path / f"fits{suffix}", np.zeros((1, longest, 3), np.uint8))
    assert read_image(tmp_path / f"fits{suffix}").shape == (1, longest, 3), "the longest side is refused"
    with pytest.raises(ImageError) as caught:
        save_image(tmp_path / f"long{suffix}", np.zeros((longest + 1, 1, 3), np.uint8))
    one_line(caught, longest, longest + 1)
    assert os.listdir(tmp_path) == [f"fits{suffix}"], "a failed save left something behind"


def test_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def write_bytes(self, content):
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space"):
        save_image(tmp_path / "a.png", photo())
    assert os.listdir(tmp_path) == [], "half a file was left behind"
