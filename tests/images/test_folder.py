"""Which files of a folder are taken, and that whatever is not is named."""

import os
from pathlib import Path

import pytest

from service.images.folder import describe_skipped, list_files, printable


def make(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
    return root


def test_files_come_folder_by_folder_in_any_case_of_any_known_suffix(tmp_path: Path) -> None:
    names = ("a.b/0.WEBP", "a/0.jpe", "a/1.JFIF", "a/b/0.Png", "a/b.jpeg", "z.jpg")
    listing = list_files(make(tmp_path, *names))
    assert listing.files == ("a/0.jpe", "a/1.JFIF", "a/b/0.Png", "a/b.jpeg", "a.b/0.WEBP", "z.jpg")
    assert listing.path(0) == tmp_path / "a" / "0.jpe"
    assert listing.skipped == {}
    assert describe_skipped(listing.skipped) == ""


def test_what_is_hidden_is_counted_and_named(tmp_path: Path) -> None:
    hidden = (".ipynb_checkpoints/a-checkpoint.png", "b/.cache/deep/1.png", "b/._0.png", "__MACOSX/b/0.png")
    make(tmp_path, "b/0.png", *hidden, ".git/objects/12", "b/.DS_Store", "b/Thumbs.db", "desktop.ini")
    listing = list_files(tmp_path)
    assert listing.files == ("b/0.png",)
    assert listing.skipped == {"hidden file": (4, ".ipynb_checkpoints/a-checkpoint.png")}
    assert describe_skipped(listing.skipped) == "4 hidden files (.ipynb_checkpoints/a-checkpoint.png, …)"


def test_masks_beside_images_are_no_images(tmp_path: Path) -> None:
    masks = ("a/0.PNG", "b/1_mask.png", "set/masks/7.png", "ground_truth/cut/9.png")
    images = ("a/0.jpg", "b/1.webp", "b/_mask.png", "set/images/7.png", "test/cut/9.png", "mask/2.png", "no_mask/2.png")
    listing = list_files(make(tmp_path, *masks, *images))
    assert set(listing.files) == set(images)
    assert listing.skipped == {"mask file": (4, "a/0.PNG")}
    assert list_files(tmp_path / "ground_truth").files == ("cut/9.png",)  # alone they are images
    assert list_files(tmp_path / "set" / "masks").files == ("7.png",)


def test_a_folder_that_is_hidden_itself_is_read(tmp_path: Path) -> None:
    assert list_files(make(tmp_path / ".data" / "set", "0.png")).files == ("0.png",)


def test_other_files_are_counted_by_suffix_images_first(tmp_path: Path) -> None:
    make(tmp_path, "0.png", "1.txt", "2.txt", "3.bmp", "labels", "4.TIF", "5.tif", "6.gif")
    words = describe_skipped(list_files(tmp_path).skipped)
    assert words.startswith("2 .tif files (4.TIF, …), 1 ")
    assert words.endswith(", 2 .txt files (1.txt, …)")
    assert {"1 .bmp file (3.bmp)", "1 .gif file (6.gif)", "1 file without a suffix (labels)"} < set(words.split(", "))
    many = {f".{letter} file": (1, f"a.{letter}") for letter in "abcdefghi"}
    assert describe_skipped(many).endswith(", 1 .f file (a.f), 3 of other kinds")


def test_links_are_followed_and_each_file_is_taken_once(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "dogs/0.png", "dogs/1.png", "one.png")
    root = make(tmp_path / "set", "cats/0.png")
    (root / "dogs").symlink_to("../elsewhere/dogs")  # a class that lies elsewhere
    (root / "a-dogs").symlink_to("../elsewhere/dogs")  # the same again: the first by name is taken
    (root / "zcats").symlink_to("cats")
    (root / "acats").symlink_to("cats")  # earlier by name, but cats itself is there
    (root / "one.png").symlink_to("../elsewhere/one.png")
    (root / "two.png").symlink_to("../elsewhere/one.png")
    (root / "also.png").symlink_to("cats/0.png")
    (root / "nowhere.png").symlink_to("nothing.png")
    listing = list_files(root)
    assert listing.files == ("a-dogs/0.png", "a-dogs/1.png", "cats/0.png", "one.png")
    assert listing.skipped == {
        "folder reached again by a link": (3, "acats"),
        "file reached again by a link": (2, "also.png"),
        "link that leads nowhere": (1, "nowhere.png"),
    }
    (tmp_path / "root").symlink_to("set")
    assert list_files(tmp_path / "root").files == listing.files


def test_files_that_link_into_a_hidden_folder_are_taken(tmp_path: Path) -> None:
    """As git-annex and the caches of Hugging Face keep their files."""
    root = make(tmp_path, ".git/annex/ab.png", ".store/cups/0.png")
    (root / "0.png").symlink_to(".git/annex/ab.png")
    (root / "cups").symlink_to(".store/cups")
    listing = list_files(root)
    assert listing.files == ("0.png", "cups/0.png")
    assert listing.skipped == {"hidden file": (2, ".git/annex/ab.png")}


def test_loops_of_links_end(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "a/b/0.png", "c/1.png")
    make(tmp_path, "beside.png")
    (root / "a" / "b" / "up").symlink_to("..")
    (root / "a" / "root").symlink_to(root)
    (root / "c" / "above").symlink_to("../..")  # what lies beside the set is not the set's
    (root / "c" / "to-a").symlink_to("../a")
    (root / "a" / "to-c").symlink_to("../c")
    (root / "self.png").symlink_to("self.png")
    (root / "self").symlink_to("self")
    listing = list_files(root)
    assert listing.files == ("a/b/0.png", "c/1.png")
    assert listing.skipped == {
        "link to a folder that it lies in": (3, "a/b/up"),
        "folder reached again by a link": (2, "a/to-c"),
        "link that leads nowhere": (1, "self.png"),
        "file without a suffix": (1, "self"),
    }


def test_a_loop_through_a_folder_elsewhere_ends(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "0.png")
    make(tmp_path / "elsewhere", "1.png")
    (root / "link").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to("../set")
    assert list_files(root).files == ("0.png", "link/1.png")


def test_what_is_called_like_an_image_and_is_no_file(tmp_path: Path) -> None:
    make(tmp_path, "folder.png/0.png")
    os.mkfifo(tmp_path / "pipe.png")
    listing = list_files(tmp_path)
    assert listing.files == ("folder.png/0.png",)
    assert listing.skipped == {"special file": (1, "pipe.png")}


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing without a word. Root may read everything, so the refusal is played."""
    make(tmp_path, "a/0.png", "b/1.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("service.images.folder.os.scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        list_files(tmp_path)
    with pytest.raises(FileNotFoundError):
        list_files(tmp_path / "absent")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    make(tmp_path, name, os.fsdecode(b"r\xe9sum\xe9/1.gif"))
    listing = list_files(tmp_path)
    assert listing.files == (name,)
    assert listing.path(0).read_bytes()
    assert describe_skipped(listing.skipped) == r"1 .gif file (r\xe9sum\xe9/1.gif)"
    assert printable(tmp_path / name).encode().endswith(rb"caf\xe9.png")


def test_a_name_that_would_change_how_a_line_is_shown_is_escaped() -> None:
    assert printable("a\x1b[2J\u202eb\u009bc\n") == r"a\x1b[2J\u202eb\x9bc\x0a"
    assert printable("Größe 文字 שלום.png") == "Größe 文字 שלום.png"
