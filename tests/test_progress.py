import io

from service.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_a_line_at_each_tenth_or_each_half_minute() -> None:
    """19 minutes for 240 images, of which the first takes long: never more than 30 seconds of silence."""
    stream, clock = io.StringIO(), Clock()
    times: list[float] = []
    with Progress("scoring", 240, stream=stream, clock=clock) as progress:
        for second in range(1140):
            clock.now = second
            before = stream.tell()
            if second % 4 == 3 and second > 100:
                progress.advance(1 if second < 1060 else 0)
            else:
                progress.tick()
            if stream.tell() != before:
                times.append(second)
        clock.now = 1140
    lines = stream.getvalue().splitlines()
    gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
    assert max(gaps) <= 30
    assert min(gaps) >= 10
    assert lines[0] == "scoring: 0 of 240 images (0 %), 30 s so far"
    assert "left" in lines[10]
    assert lines[-1] == "scoring: 240 of 240 images in 19 min 0 s"


def test_a_short_log_stays_empty_and_a_silent_one_too() -> None:
    for shown, seconds in ((True, 9.0), (False, 900.0)):
        stream, clock = io.StringIO(), Clock()
        with Progress("scoring", 2, shown=shown, stream=stream, clock=clock) as progress:
            for _ in range(2):
                clock.now += seconds / 2
                progress.advance(1)
        assert stream.getvalue() == ""


def test_a_terminal_has_one_line_that_is_written_again() -> None:
    stream, clock = Terminal(), Clock()
    with Progress("decoding", 4, stream=stream, clock=clock) as progress:
        for _ in range(3):
            clock.now += 1
            progress.advance(1)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().split("\r\x1b[K")[-2:] == [
        "decoding: 3 of 4 images (75 %), 1 s left",
        "decoding: 3 of 4 images in 3 s\n",
    ]


def test_what_was_done_before_took_no_time() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("scoring", 4000, before=2000, rate=True, stream=stream, clock=clock) as progress:
        clock.now = 10
        progress.advance(500)
        clock.now = 40
        progress.advance(-500)
        clock.now = 80
        progress.advance(2)
    assert stream.getvalue().splitlines() == [
        "scoring: 2500 of 4000 images (62 %), 50 images a second, 30 s left",
        "scoring: 2000 of 4000 images (50 %), 40 s so far",
        "scoring: 2002 of 4000 images (50 %), 0.025 images a second, 22 h 12 min left",
        "scoring: 2002 of 4000 images in 1 min 20 s",
    ]
