"""Encode beside an endless long job; and what happens at twice the load that the service can bear.

python benchmarks/overload.py

The service runs in a process of its own, with the bundled model; the client shares the machine with it. The first part
has default settings; the others bound the requests in the queue, as one does who would rather refuse than be late.
"""

import asyncio
from collections.abc import Sequence

import uvloop
from load import Answers, Connection, closed_loop, connect, digits, npy, open_loop, png, post, served

SECONDS = 8.0
ROUNDS = 3


def line(name: str, answers: Answers) -> None:
    """One line of a table."""
    statuses = ", ".join(f"{count} × {status}" for status, count in sorted(answers.statuses.items()))
    p50, p99 = answers.milliseconds(0.5), answers.milliseconds(0.99)
    print(f"    {name:34}{answers.rate:9.0f} {p50:9.2f} {p99:9.2f}    {statuses}", flush=True)


async def beside_a_long_job(port: int, encode: Sequence[bytes], long: bytes) -> None:
    """Encode's latency alone and beside a job that is always running."""
    ended = False

    async def endless() -> None:
        connection: Connection = await connect(port)
        while not ended:
            await connection.ask(long)

    print(f"\nencode of one PNG, {SECONDS:g} s each\n    {'':34}{'200/s':>9} {'p50 ms':>9} {'p99 ms':>9}    answers")
    for connections in (1, 8, 32):
        ended = False
        alone = await closed_loop(port, encode, connections=connections, seconds=SECONDS)
        job = asyncio.create_task(endless())
        await asyncio.sleep(1)
        beside = await closed_loop(port, encode, connections=connections, seconds=SECONDS)
        ended = True
        await job
        line(f"{connections} connections, alone", alone)
        line(f"{connections} connections, beside the job", beside)
        print(f"    p99 beside the job / alone: {beside.milliseconds(0.99) / alone.milliseconds(0.99):.2f} (bar: 4)")


async def overload(port: int, name: str, requests: Sequence[bytes], connections: int) -> None:
    """Half the sustainable load, twice that load, and half of it again."""
    await closed_loop(port, requests, connections=connections, seconds=2)
    found = [await closed_loop(port, requests, connections=connections, seconds=SECONDS / 2) for _ in range(ROUNDS)]
    best = max(found, key=lambda answers: answers.rate)
    print(f"\n{name}\n    {'':34}{'200/s':>9} {'p50 ms':>9} {'p99 ms':>9}    answers")
    line(f"{connections} connections, best of {ROUNDS}", best)
    half = await open_loop(port, requests, rate=best.rate / 2, seconds=SECONDS)
    line("half that rate", half)
    twice = await open_loop(port, requests, rate=2 * best.rate, seconds=SECONDS)
    line("twice that rate", twice)
    after = await open_loop(port, requests, rate=best.rate / 2, seconds=SECONDS)
    line("half that rate, at once afterwards", after)
    print(f"    p99 at twice / at half: {twice.milliseconds(0.99) / half.milliseconds(0.99):.2f} (bar: 3)")
    print(f"    throughput at twice / best: {twice.rate / best.rate:.2f} (bar: 0.9)")
    print(f"    p99 afterwards / before: {after.milliseconds(0.99) / half.milliseconds(0.99):.2f}")


def main() -> None:
    """Print both parts."""
    images = digits()
    encode = [post("/v1/encode", png(image), "image/png") for image in images]
    score = [post("/v1/log-likelihood?proposal=laplace", png(image), "image/png") for image in images]
    long = post("/v1/log-likelihood?proposal=encoder&num_samples=5000", npy(images[:64]), "application/x-npy")
    with served() as port:
        uvloop.run(beside_a_long_job(port, encode, long))
    with served(max_queued_requests=8) as port:
        uvloop.run(overload(port, "log-likelihood of one PNG (laplace, 400 samples), at most 8 in the queue", score, 8))
    with served(max_queued_requests=32) as port:
        uvloop.run(overload(port, "encode of one PNG, at most 32 in the queue", encode, 32))


if __name__ == "__main__":
    main()
