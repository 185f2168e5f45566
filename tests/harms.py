"""What disks, copies, power failures and people do to a file."""

import pathlib
import random


def flip_a_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: pathlib.Path) -> None:
    path.unlink()


HARMS = (empty, cut, flip_a_bit, remove)

JSON_VALUES = (
    *(None, True, -1, 0, 1, 2**31, 2**70, 1e308, float("nan"), "", "x", "../x", "\x00", "[MASK]"),
    *([], {}, [1], ["a"], {"a": 1}, {"0": "a", "1": "a"}, [[]], "a" * 5000),
)


def mutated(value, rng: random.Random):
    """`value` with one place in it, at any depth, replaced, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice([*value])
        kind = rng.random()
        if kind < 0.15:
            return {name: x for name, x in value.items() if name != key}
        if kind < 0.2:
            return {(f"{name}2" if name == key else name): x for name, x in value.items()}
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = rng.randrange(len(value))
        return [*value[:i], mutated(value[i], rng), *value[i + (rng.random() < 0.9) :]]
    return rng.choice(JSON_VALUES)
