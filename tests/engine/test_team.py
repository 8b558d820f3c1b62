"""Runs made at once: who makes them, how they are cut, and that neither changes a number."""

import gc
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store import BUNDLED, ImageShape, open_version
from service.engine import runtime
from service.engine.anomaly.detector import AnomalyScores
from service.engine.blocks import CPU_BLOCKS, cpu_blocks, pieces, tiles
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior.estimate import LogLikelihood
from service.engine.runtime import Runtime
from service.engine.team import Team
from tests import reference
from tests.toys import bernoulli_toy

DATA = Path(__file__).parents[1] / "data"
GREY = ImageShape(channels=1, height=8, width=7)
PATIENCE = 10.0


class TestTeam:
    def each(self, team: Team, run: Any, count: int) -> tuple[list[tuple[int, Any]], int]:
        """What a team keeps of pieces 0, 1, …, and in how many chunks."""
        kept: list[tuple[int, Any]] = []
        chunks = team.each(
            lambda inputs: {"y": run(inputs["x"])},
            range(count),
            lambda piece: {"x": np.array(piece)},
            lambda piece, outputs: kept.append((piece, int(outputs["y"]))),
        )
        return kept, sum(1 for _ in chunks)

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_every_piece_is_kept_in_order_and_as_many_are_run_at_once_as_it_has_threads(self, size: int) -> None:
        meeting, threads = threading.Barrier(size), set()

        def run(x: NDArray[np.int64]) -> NDArray[np.int64]:
            meeting.wait(PATIENCE)  # nobody gets past it alone
            threads.add(threading.get_ident())
            return x**2

        kept, chunks = self.each(Team(size), run, 4 * size)
        assert kept == [(piece, piece**2) for piece in range(4 * size)]
        assert chunks == 4
        assert len(threads) == size
        assert threading.get_ident() in threads

    def test_a_last_chunk_may_have_fewer_and_nothing_has_none(self) -> None:
        kept, chunks = self.each(Team(3), lambda x: x, 5)
        assert [piece for piece, _ in kept] == [0, 1, 2, 3, 4]
        assert chunks == 2
        assert self.each(Team(3), lambda x: x, 0) == ([], 0)

    @pytest.mark.parametrize("begins", [True, False])
    def test_what_has_run_is_held_by_no_helper(self, begins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A helper's thread keeps what it was given for a moment longer: a model would outlive all who use it."""
        team, meeting, given = Team(2), threading.Barrier(2), []
        assert team._helpers is not None
        submit = team._helpers.submit

        def kept(*work: Any) -> Future[Any]:
            given.append(work)
            return submit(*work) if begins else Future()

        monkeypatch.setattr(team._helpers, "submit", kept)

        class Run:
            def __call__(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
                if begins:
                    meeting.wait(PATIENCE)
                return x

        run = Run()
        held = weakref.ref(run)
        assert self.each(team, run, 2) == ([(0, 0), (1, 1)], 1)
        del run
        assert len(given) == 1
        assert held() is None

    @pytest.mark.parametrize("failing", [0, 1])
    def test_an_error_is_raised_once_the_other_run_has_ended(self, failing: int) -> None:
        both_have_begun, other_ends, ended = threading.Barrier(2), threading.Event(), []

        def run(x: NDArray[np.int64]) -> NDArray[np.int64]:
            both_have_begun.wait(PATIENCE)
            if x == failing:
                threading.Timer(0.05, other_ends.set).start()
                raise ValueError("no such piece")
            assert other_ends.wait(PATIENCE)
            ended.append(int(x))
            return x

        team = Team(2)
        with pytest.raises(ValueError, match="no such piece"):
            self.each(team, run, 2)
        assert ended == [1 - failing]
        assert self.each(team, lambda x: x, 2)[0] == [(0, 0), (1, 1)]  # it serves the next one

    def test_who_calls_makes_the_runs_that_no_helper_comes_to(self) -> None:
        """Where another caller, or another process, has the helpers or their core."""
        team, busy, at_work = Team(3), threading.Event(), threading.Barrier(3)

        def occupy(_: NDArray[np.int64]) -> NDArray[np.int64]:
            at_work.wait(PATIENCE)
            assert busy.wait(PATIENCE)
            return np.array(0)

        assert team._helpers is not None
        others = [team._helpers.submit(occupy, np.array(0)) for _ in range(2)]
        at_work.wait(PATIENCE)
        threads = set()

        def run(x: NDArray[np.int64]) -> NDArray[np.int64]:
            threads.add(threading.get_ident())
            if x == 4:
                raise ValueError("no such piece")
            return -x

        assert self.each(team, run, 4) == ([(0, 0), (1, -1), (2, -2), (3, -3)], 2)
        with pytest.raises(ValueError, match="no such piece"):
            self.each(team, run, 5)
        assert threads == {threading.get_ident()}
        busy.set()
        assert [int(other.result(PATIENCE)) for other in others] == [0, 0]

    def test_several_may_call_at_once(self) -> None:
        team, answers = Team(2), {}

        def work(number: int) -> None:
            answers[number] = self.each(team, lambda x: x * number, 40)[0]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert answers == {number: [(piece, piece * number) for piece in range(40)] for number in range(4)}

    def test_its_threads_end_with_it(self) -> None:
        def helpers() -> set[threading.Thread]:
            return {thread for thread in threading.enumerate() if thread.name.startswith("inference-helper")}

        before = helpers()
        team = Team(3)
        self.each(team, lambda x: x, 3)
        (own := helpers() - before)
        assert own
        del team
        gc.collect()
        for thread in own:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_runtime_has_as_many_threads_as_it_is_told_or_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "usable_cores", lambda: 5)
    assert (Runtime("cpu").team.size, Runtime("cpu", 2).team.size) == (5, 2)


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
@pytest.mark.parametrize("most_rows", [1, 7, 256])
def test_runs_have_every_row_once_and_no_more_than_they_may(at_once: int, most_rows: int) -> None:
    for num_images in (0, 1, 5, 32):
        for start, stop in ((0, 1), (64, 164), (0, 400)):
            run = np.zeros((num_images, stop), np.int64)
            sizes = []
            for some in tiles(num_images, slice(start, stop), most_rows, at_once):
                run[some] += 1
                sizes.append(run[some].size)
                if most_rows >= 4 and some[1].stop < stop:
                    assert (some[1].stop - some[1].start) % 4 == 0 or some[1].stop - some[1].start == most_rows
            assert (run[:, start:] == 1).all()
            assert (run[:, :start] == 0).all()
            assert max(sizes, default=0) <= most_rows
        for rows_each in (1, 25, 51, 300):
            found = [*pieces(num_images, rows_each, most_rows, at_once)]
            assert [index for piece in found for index in range(piece.start, piece.stop)] == [*range(num_images)]
            assert all((piece.stop - piece.start) * rows_each <= max(most_rows, rows_each) for piece in found)


@pytest.mark.parametrize("at_once", [2, 3, 8])
def test_every_thread_has_work(at_once: int) -> None:
    for num_images, count in ((1, 400), (16, 400), (32, 64), (100, 128)):
        assert len([*tiles(num_images, slice(0, count), 256, at_once)]) >= at_once
    for num_images in (at_once, 32, 100):
        assert len([*pieces(num_images, 33, 256, at_once)]) >= at_once
    assert len([*tiles(1, slice(0, 32), 256, at_once)]) == 1  # not worth waking another thread


def test_runs_at_once_take_no_more_memory_than_one() -> None:
    large = 300 * 300 * 3
    for at_once in (1, 2, 8):
        rows = cpu_blocks(at_once).chunk_rows(large)
        assert 0 < rows * at_once <= CPU_BLOCKS.chunk_rows(large)
        assert cpu_blocks(at_once).chunk_rows(28 * 28) == CPU_BLOCKS.chunk_rows(28 * 28)
    toy = bernoulli_toy(GREY, 5)
    one, three = (reference.load(toy, num_threads=number) for number in (1, 3))
    assert three.run_bytes - one.run_bytes == 2 * 512 * 40 * GREY.size


@cache
def digits_model(num_threads: int) -> Model:
    return Model.open(open_version(BUNDLED, "mnist"), runtime=Runtime("cpu", num_threads), tried=True)


@cache
def pixels() -> NDArray[np.float32]:
    """Familiar, strange, and neither: digits, a shoe, noise, black."""
    digits = np.load(DATA / "digits.npz")["test"][:6]
    clothes = np.load(DATA / "clothes.npz")
    shoe = clothes[clothes.files[0]][:1].reshape(1, 28, 28)
    noise = np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8)
    every = np.concatenate([digits[:3], shoe, digits[3:], noise, np.zeros((1, 28, 28), np.uint8)])
    return every[:, None].astype(np.float32) / np.float32(255)


def bits(answer: LogLikelihood | AnomalyScores) -> Mapping[str, bytes]:
    found = {field.name: getattr(answer, field.name) for field in fields(answer)}
    judged = {name: judgement.score for name, judgement in found.pop("by_method", {}).items()}
    return {name: np.asarray(array).tobytes() for name, array in {**found, **judged}.items() if array is not None}


def test_the_number_of_threads_changes_no_bit_of_an_answer() -> None:
    digits_and_shoe, by = pixels()[[0, 3]], ["combined", "reconstruction"]
    answers = []
    for num_threads in (1, 2, 3):
        model = digits_model(num_threads)
        of_one = bits(complete(model.log_likelihood(pixels()[[0]], proposal="laplace")))
        of_some = bits(complete(model.log_likelihood(digits_and_shoe)))
        answers.append((of_one, of_some, bits(complete(model.anomaly_scores(pixels()[[4, 8]], methods=by)))))
    assert answers[0] == answers[1] == answers[2]


def test_computations_that_take_turns_on_two_threads_do_not_touch_each_other() -> None:
    """Nor does one that is given up between two chunks, or a model that is dropped while it still computes."""
    alone = [bits(complete(digits_model(1).log_likelihood(pixels()[[i]], seed=i))) for i in (0, 8, 5)]
    model = Model.open(open_version(BUNDLED, "mnist"), runtime=Runtime("cpu", 2), tried=True)
    running = {number: model.log_likelihood(pixels()[[i]], seed=i) for number, i in enumerate((0, 8, 5))}
    given_up = model.log_likelihood(pixels()[[3, 7]])  # a shoe and noise
    for _ in range(3):
        next(given_up)
    del model
    answers: dict[int, Any] = {}
    while running:
        for number, chunks in [*running.items()]:
            try:
                next(chunks)
            except StopIteration as stop:
                answers[number] = bits(stop.value)
                del running[number]
        given_up.close()
    assert [answers[number] for number in range(3)] == alone


def test_decoder_rows_do_not_depend_on_the_number_of_threads() -> None:
    """So what requests are expected to cost does not either."""
    counted = []
    for num_threads in (1, 2, 3):
        model = digits_model(num_threads)
        before = model.decoder_rows
        complete(model.log_likelihood(pixels()[[0, 8]]))
        counted.append(model.decoder_rows - before)
    assert counted[0] == counted[1] == counted[2] > 800
