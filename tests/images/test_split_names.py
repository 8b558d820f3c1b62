import pytest

from service.images.split_names import divide, exact_part, named_part


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "validation", "test"),
        ("training", "valid", "testing"),
        ("Train", "VAL", "Test"),
        ("TRAINING", "dev", "evaluation"),
        ("seg_train", "seg_val", "seg_test"),
        ("train2017", "val2017", "test2017"),
        ("cups train", "cups-dev", "cups.eval"),
    ],
)
def test_folders_in_their_usual_spellings(train: str, validation: str, test: str) -> None:
    files = [f"{train}/a/0.png", f"{train}/b/1.png", f"{validation}/2.png", f"{test}/a/3.png", f"{test}/b/4.png"]
    division = divide(files)
    assert division.parts == {"train": files[:2], "validation": files[2:3], "test": files[3:]}
    assert (division.outside, division.doubtful) == ([], None)


def test_parts_within_classes() -> None:
    """As MVTec AD lies: the parts of each class in its own folder."""
    files = ["bottle/ground/0.png", "bottle/test/broken/0.png", "bottle/train/good/0.png", "cable/train/good/0.png"]
    assert divide(files).parts == {"test": files[1:2], "train": files[2:]}
    assert divide(files).outside == files[:1]


def test_the_outermost_folder_decides() -> None:
    """A class may be called train (as vehicles are), or test."""
    files = ["train/test/0.png", "train/train/1.png", "val/train/2.png"]
    assert divide(files).parts == {"train": files[:2], "validation": files[2:]}


def test_a_class_called_like_a_part_deep_within_is_a_class() -> None:
    files = ["vehicles/bus/0.png", "vehicles/train/1.png", "people/val/2.png"]
    assert divide(files).parts == {"train": files}
    assert divide(files).doubtful is None
    words = ["beaker/0.png", "test tube/1.png"]
    assert divide(words).parts == {"train": words}


@pytest.mark.parametrize("name", ["train", "Testing", "val"])
def test_a_lone_folder_called_like_a_part_is_doubtful_beside_others(name: str) -> None:
    assert divide(["bus/0.png", f"{name}/1.png"]).doubtful == name
    assert divide(["0.png", f"{name}/1.png"]).doubtful == name
    assert divide([f"{name}/0.png", f"{name}/1.png"]).doubtful is None  # the one folder: all images either way
    assert divide(["val/0.png", "test/0.png"]).doubtful == "test"


def test_no_part_is_left_without_training_images() -> None:
    files = ["test/train/0.png", "test/val/1.png"]
    assert divide(files).parts == {"train": files}
    assert divide([]).parts == {"train": []}


def test_words_and_not_syllables() -> None:
    assert [named_part(name) for name in ("trainer", "contest", "vale", "latest-1", "trains_0")] == [None] * 5
    assert named_part("part-0.train.parquet") == named_part("split=train") == named_part("TRAIN-0.parquet") == "train"
    assert exact_part("train1") is None


def test_defects_are_no_test_images_of_ordinary_ones() -> None:
    """MVTec AD's layout, as anomalib reads it; masks are in no part."""
    good = [f"bottle/{part}/good/{number}.png" for part in ("test", "train") for number in range(2)]
    defects = ["bottle/test/broken_large/0.png", "bottle/test/contamination/0.png"]
    masks = ["bottle/ground_truth/broken_large/0_mask.png"]
    division = divide(sorted([*good, *defects, *masks]))
    assert division.parts == {"test": good[:2], "train": good[2:]}
    assert (division.unlike, division.outside) == (defects, masks)


@pytest.mark.parametrize(
    "files",
    [
        ["test/cups/0.png", "test/plates/1.png", "train/cups/2.png", "train/plates/3.png"],  # classes
        ["test/cups/0.png", "test/plates/1.png", "train/2.png"],  # training has none
        ["test/broken/0.png", "train/good/1.png"],  # all there is to test on
        ["test/0.png", "test/good/1.png", "train/0.png", "train/good/1.png"],
    ],
)
def test_other_layouts_keep_all_test_images(files: list[str]) -> None:
    division = divide(files)
    assert sorted(division.parts["test"] + division.parts["train"]) == files
    assert division.unlike == []
