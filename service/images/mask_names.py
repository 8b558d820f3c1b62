"""Find by their names the files that say where something is in an image, and are no images themselves: masks.

They lie beside the images that people collect for inspection and segmentation: MVTec AD, VisA, magnetic tiles.
"""

from collections.abc import Sequence

_GROUND_TRUTH = ("ground_truth", "groundtruth", "ground-truth", "gt")
_MASKS = ("mask", "masks", "segmentation", "segmentations", "annotation", "annotations", "label", "labels")
_IMAGES = ("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "rgb", "input", "inputs")
_ENDINGS = ("_mask", "_gt", "_seg", "_segmentation", "_label", "_labels", "_groundtruth")
_JPEG = ("jpg", "jpeg", "jpe", "jfif")


def mask_files(files: Sequence[str]) -> set[str]:
    """Those of the files (paths with `/`) that are masks of others, by these rules, in upper or lower case.

    - in a folder `ground_truth` (or `gt`), if there are images outside of such folders
    - in a folder `masks` (or `labels`, `annotations` and the like) beside a folder `images` (or `imgs` and the like)
    - whose name is another file's in their folder, followed by `_mask` (or `_gt`, `_seg` and the like): `1_mask.png`
      beside `1.jpg`
    - PNG files beside a JPEG of the same name: `1.png` beside `1.jpg`

    >>> sorted(mask_files(["a/1.jpg", "a/1.png", "a/2.png", "a/2_mask.png", "a/3_mask.png", "gt/a/2.png"]))
    ['a/1.png', 'a/2_mask.png', 'gt/a/2.png']
    >>> sorted(mask_files(["x/images/1.png", "x/masks/1.png", "mask/1.png", "no_mask/1.png"]))
    ['x/masks/1.png']
    """
    folders = {folder for file in files for folder in _folders_of(file.lower())}
    in_ground_truth = [file for file in files if any(name in _GROUND_TRUTH for name in file.lower().split("/")[:-1])]
    found = set(in_ground_truth) if len(in_ground_truth) < len(files) else set()
    stems = _by_stem(files)
    for file in files:
        lower = file.lower()
        stem, _, suffix = lower.rpartition(".")
        bare = next((stem.removesuffix(ending) for ending in _ENDINGS if stem.endswith(ending)), stem)
        if (
            (bare != stem and bare in stems)
            or (suffix == "png" and not stems[stem].isdisjoint(_JPEG))
            or any(_is_beside_images(folder, folders) for folder in _folders_of(lower))
        ):
            found.add(file)
    return found


def _by_stem(files: Sequence[str]) -> dict[str, set[str]]:
    """The suffixes of the files by path without suffix, in lower case."""
    stems: dict[str, set[str]] = {}
    for file in files:
        stem, _, suffix = file.lower().rpartition(".")
        stems.setdefault(stem, set()).add(suffix)
    return stems


def _folders_of(file: str) -> list[str]:
    """The folders that contain a file, outermost first."""
    names = file.split("/")[:-1]
    return ["/".join(names[: depth + 1]) for depth in range(len(names))]


def _is_beside_images(folder: str, folders: set[str]) -> bool:
    above, _, name = folder.rpartition("/")
    return name in _MASKS and any((f"{above}/{other}" if above else other) in folders for other in _IMAGES)
