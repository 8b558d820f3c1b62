"""What `--size auto` chooses, of whatever sizes images have."""

import numpy as np
import pytest

from training.configuration import LARGEST_OF_AN_MLP
from training.data.preparation import Preparation, Sizes, choose, choose_size, is_grey
from training.errors import ConfigurationError

RNG = np.random.default_rng(4)
FOLDERS = [
    [(28, 28)] * 5,
    [(1, 1)] * 5,
    [(1, 500)] * 5,
    [(300, 300), (301, 300), (299, 310)],
    [(480, 640), (960, 1280), (470, 650)],
    [(4000, 30), (4001, 31)],
    [(16, 21)] * 4 + [(17, 22)],  # no multiples of 8 have this aspect ratio
    *[[(int(a), int(b)) for a, b in RNG.integers(1, 600, (30, 2))] for _ in range(20)],
    *[[(int(a), int(b)) for a, b in np.exp(RNG.uniform(0, 12, (30, 2)))] for _ in range(20)],
]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_folder_gets_a_size_that_an_mlp_takes_and_that_wastes_little(channels: int) -> None:
    for folder in FOLDERS:
        sizes = Sizes.of(folder)
        height, width = choose_size(sizes, channels)
        assert height * width * channels <= LARGEST_OF_AN_MLP, folder
        typical = float(np.quantile(np.minimum(sizes.heights, sizes.widths), 0.25))
        assert height * width >= min(typical**2 / 4, LARGEST_OF_AN_MLP / channels / 3), folder


def test_what_was_chosen_is_told_with_its_reasons() -> None:
    sizes = Sizes.of([(300, 200), (480, 640), (250, 250)])
    chosen, said = choose(Preparation("auto", "crop"), sizes, all_grey=True, looked_at=3)
    assert chosen == Preparation((64, 64), "crop", "grey")
    assert said[0] == (
        "--size auto: 3 images of 3 sizes, 250 to 480 pixels high and 200 to 640 wide; grey (by the pixels of 3)"
    )
    assert said[1].startswith("--size auto chose 64x64 (height x width), grey, fit crop: up to 4096 numbers an image")
    assert said[2] == "fit crop leaves out 25 % of the median image; --fit pad keeps all of it"
    assert len(said) == 3
    chosen, said = choose(Preparation("auto", "pad", "rgb"), Sizes.of([(28, 28)] * 900), all_grey=False, looked_at=0)
    assert chosen == Preparation((28, 28), "pad", "rgb")
    assert said == [
        "--size auto: 900 images 28×28 each (height × width); colour",
        "--size auto chose 28x28 (height x width), rgb, fit pad: as they are",
    ]


def test_a_grey_image_may_have_the_colours_that_jpeg_makes() -> None:
    grey = np.repeat(RNG.integers(0, 248, (1, 40, 40)), 3, axis=0)
    assert is_grey((grey + RNG.integers(0, 8, grey.shape)).astype(np.uint8))
    coloured = grey.astype(np.uint8)
    coloured[0, :4, :4] = 255 - coloured[0, :4, :4]
    coloured[:, :4, :4] //= np.array([1, 2, 3], np.uint8)[:, None, None]
    assert not is_grey(coloured)


def test_a_size_and_exact_do_not_belong_together() -> None:
    with pytest.raises(ConfigurationError, match="leave out --size"):
        Preparation((64, 64))
    assert Preparation.asked({"size": (64, 64), "fit": "exact"}).fit == "crop"  # inherited from a run of one size
