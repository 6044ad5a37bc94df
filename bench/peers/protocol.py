"""What the peers in Python share: the protocol of README.md, data, a naive answer to check by."""

import dataclasses
import math
import os
import sys
import time
from typing import Callable, Iterable

import numpy as np


class Unsupported(Exception):
    """This peer can't do what is asked; the text says why."""


@dataclasses.dataclass
class Problem:
    type: str
    layout: str  # empty: whichever the peer has
    head_dim: int
    kv_heads: int
    group: int
    length: int  # positions that are attended
    queries: int = 1  # of each head: the last positions
    threads: int = 1
    bytes: int = 0

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    def layers(self, value_bytes: int) -> int:
        layer = 2 * self.length * self.kv_heads * self.head_dim * value_bytes
        return max(2, self.bytes // layer + 1) if self.queries == 1 else 1


def require_supported(problem: Problem, types: Iterable[str], layout: str, rows: str) -> None:
    """`layout` is the one that the peer has; `rows` says so in its own terms."""
    if problem.type not in types:
        raise Unsupported(f"type {problem.type}: the cache may be {', '.join(types)}")
    if problem.layout not in ("", layout):
        raise Unsupported(f"layout {problem.layout}: the cache is {rows}")


class Attention:
    """What a peer has made ready for a problem."""

    note = ""

    def prepare(self) -> None:
        """Called before a timed run."""

    def step(self) -> None:
        """One decode step of the next layer, or one prefill."""
        raise NotImplementedError

    def last(self) -> tuple[np.ndarray, ...]:
        """Queries, outputs [query, head, dim], keys, values [head, row, dim] of the latest step."""
        raise NotImplementedError


def fill(array: np.ndarray, generator: np.random.Generator, scale: float = 1) -> None:
    """Rows of standard normal numbers, divided by scale, drawn from a few thousand of them."""
    rows = array.reshape(-1, array.shape[-1])
    distinct = generator.standard_normal((4099, rows.shape[1]), np.float32) / np.float32(scale)
    if array.dtype == np.int8:
        distinct = np.clip(np.rint(distinct), -127, 127)
    distinct = distinct.astype(array.dtype)
    for part in np.array_split(rows, len(rows) // 65536 + 1):  # in parts, for the sake of memory
        part[:] = distinct[generator.integers(len(distinct), size=len(part))]


def difference(attention: Attention, group: int) -> str:
    """The largest difference to a naive computation in double, of some queries; largest output."""
    queries, outputs, keys, values = attention.last()
    worst = largest = 0.0
    for query in range(0, len(queries), 61):
        visible = keys.shape[1] - len(queries) + query + 1
        for head in range(queries.shape[1]):
            key, value = (of[head // group, :visible].astype(np.float64) for of in (keys, values))
            scores = key @ queries[query, head].astype(np.float64) / math.sqrt(key.shape[1])
            weights = np.exp(scores)
            expected = weights @ value / weights.sum()
            worst = max(worst, np.abs(outputs[query, head] - expected).max())
            largest = max(largest, np.abs(expected).max())
    return f"{worst:.3g} of {largest:.3g}"


def wait_until_quiet() -> None:
    """Threads may go on spinning for a while when their work is done: waits until they sleep."""
    quiet = 0
    for _ in range(500):
        before = time.process_time()
        time.sleep(0.004)
        quiet = quiet + 1 if time.process_time() - before < 0.0004 else 0
        if quiet == 3:
            return


def numbers(words: list[str], count: int) -> list[int]:
    found = [int(word) for word in words]
    if len(found) != count or min(found[:5]) < 1:
        raise Unsupported(f"cannot read: {' '.join(words)}")
    return found


def serve(make: Callable[[Problem], Attention]) -> None:
    """Answers requests until `quit`. What libraries print to stdout goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    attention: Attention | None = None

    def answer(command: str, words: list[str]) -> str:
        nonlocal attention
        if command == "run":
            if attention is None:
                raise Unsupported("nothing to run")
            (count,) = numbers(words, 1)
            attention.prepare()
            attention.step()  # untimed: wakes the threads
            start = time.perf_counter_ns()
            for _ in range(count):
                attention.step()
            return f"{(time.perf_counter_ns() - start) / count / 1000:.3f}"
        attention = None
        if command == "decode":
            kind, layout = words[:2]
            dim, kv_heads, group, length, threads, size = numbers(words[2:], 6)
            attention = make(Problem(kind, layout, dim, kv_heads, group, length, 1, threads, size))
        elif command == "prefill":
            dim, kv_heads, group, tokens, threads = numbers(words[1:], 5)
            attention = make(Problem(words[0], "", dim, kv_heads, group, tokens, tokens, threads))
        elif command == "check":
            dim, kv_heads, group, length = numbers(words[1:], 4)
            found = []
            for name, queries in (("decode", 1), ("prefill", length)):
                checked = make(Problem(words[0], "", dim, kv_heads, group, length, queries, 2))
                found.append(f"{name} {difference(checked, group)}")
            return " ".join(found)
        else:
            raise Unsupported(f"cannot read: {command}")
        return f"ready {attention.note}"

    for line in sys.stdin:
        command, *words = line.split() or [""]
        if command == "quit":
            break
        try:
            text = answer(command, words)
        except Exception as error:  # noqa: BLE001 - whatever it is, the benchmark goes on without
            attention = None
            text = "unsupported " + " ".join(str(error).split())
        wait_until_quiet()
        print(text, file=answers, flush=True)
