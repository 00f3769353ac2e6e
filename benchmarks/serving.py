"""Requests per second of `experiments.serve`: a CNN, 32 connections, 10 % invalid requests.

python -m benchmarks.serving runs/mnist/2026-01-31_12-00-00
"""

import asyncio
import collections
import io
import subprocess
import sys
import time

import numpy as np
from PIL import Image

REQUESTS, CONNECTIONS = 1000, 32


def bodies(count: int) -> list[bytes]:
    """Returns PNG files of digits as from a phone; every tenth is truncated."""
    from sklearn.datasets import load_digits

    files = []
    for i, digit in enumerate(load_digits().images[:count]):
        pixels = np.uint8(255 - digit * 15).repeat(8, 0).repeat(8, 1)
        content = io.BytesIO()
        Image.fromarray(np.pad(pixels, 24, constant_values=255)).save(content, "PNG")
        files.append(content.getvalue()[: 90 if i % 10 == 9 else None])
    return files


async def client(port: int, queue: list[bytes], statuses, seconds) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while queue:
        body = queue.pop()
        start = time.perf_counter()
        head = (
            "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        statuses[int(answer.split()[1])] += 1
        seconds.append(time.perf_counter() - start)
    writer.close()


async def measure(port: int, content: list[bytes]):
    """Returns (requests per second, statuses, seconds of each request)."""
    statuses, seconds, queue = collections.Counter(), [], list(content)
    start = time.perf_counter()
    await asyncio.gather(*(client(port, queue, statuses, seconds) for _ in range(CONNECTIONS)))
    return len(content) / (time.perf_counter() - start), statuses, np.array(seconds)


def memory(process) -> float:
    """Returns the resident MB of a process on Linux."""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
        (line,) = (line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main(run: str) -> None:
    content = bodies(REQUESTS)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.serve", run, "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = next(line for line in process.stdout if line.startswith("http://"))
        port = int(line.split()[0].rpartition(":")[2])
        for i in range(4):
            rate, statuses, seconds = asyncio.run(measure(port, content))
            half, most = np.quantile(seconds, (0.5, 0.99)) * 1000
            print(
                f"round {i + 1}: {rate:.0f} requests per second, {half:.0f} ms (median; 99 %: "
                f"{most:.0f}), statuses {dict(statuses)}, {memory(process):.0f} MB", flush=True,
            )  # fmt: skip
    finally:
        process.terminate()
        print("exit code", process.wait(60))


if __name__ == "__main__":
    main(*sys.argv[1:])
