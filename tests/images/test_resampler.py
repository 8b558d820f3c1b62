"""A model whose images were resampled otherwise is refused, or warned of."""

import pytest

from model_store import PixelPreparation, Resampler
from service.images.resampler import ResamplerError, check_resampler, installed_resampler


def preparation(**changes: object) -> PixelPreparation:
    resampler = Resampler.model_validate(installed_resampler().model_dump() | changes)
    return PixelPreparation(fit="crop", resampler=resampler)


def test_the_resampler_here_is_right_in_silence() -> None:
    assert check_resampler(preparation()) is None
    assert check_resampler(PixelPreparation()) is None


def test_another_version_is_told_of_and_other_bits_are_refused() -> None:
    warning = check_resampler(preparation(version="1.0"))
    assert warning is not None
    assert warning.startswith("its images were resampled by pillow 1.0 (bilinear, antialiased), here by version ")
    assert warning.endswith("; a test pattern has the same bits")
    warning = check_resampler(preparation(version="1.0", sha256=None))
    assert warning is not None
    assert warning.endswith("; its pixels may differ")
    for version in ("1.0", installed_resampler().version):
        with pytest.raises(ResamplerError, match=f"pillow {version} .* whose pixels are not those of pillow"):
            check_resampler(preparation(version=version, sha256="0" * 64))


@pytest.mark.parametrize("changes", [{"library": "opencv"}, {"filter": "lanczos"}, {"antialiased": False}])
def test_another_library_or_filter_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ResamplerError, match="; this service has pillow"):
        check_resampler(preparation(**changes))


def test_the_test_pattern_has_these_bits() -> None:
    """If this fails with a new version of Pillow, models trained with the old one are refused: say so in CHANGELOG."""
    assert installed_resampler().sha256 == "8e40ec45d21721eed340fe522d89f50bcfe86baa70515c40d93ac54bf651aee7"
