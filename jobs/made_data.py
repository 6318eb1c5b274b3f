"""Data that is made, not measured: half-moons for `moons_mlp.yaml`, sentences for `sentiment_lstm.yaml`.

python jobs/made_data.py sentences.csv
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path
from typing import Any

_PRAISE = ("good", "fine", "lovely", "brilliant", "moving", "clever", "charming", "superb", "honest", "funny")
_BLAME = ("bad", "dull", "awful", "clumsy", "boring", "stupid", "tired", "hollow", "noisy", "dreadful")
_THINGS = ("film", "story", "cast", "ending", "music", "plot", "dialogue", "camera work", "book", "play")
_FRAMES = (
    "the {thing} was {word}",
    "a {word} {thing}",
    "i found the {thing} {word}",
    "what a {word} {thing} it was",
    "nobody can call this {thing} {opposite}",
    "the {thing} is not {opposite} at all",
    "far from {opposite} , the {thing} is {word}",
    "they say the {thing} is {opposite} , but it is {word}",
)
"""`opposite` is a word of the other side, denied: counting words alone does not tell the sides apart."""


def moons(rows: int, noise: float, seed: int) -> dict[str, Any]:
    """Two interleaved half-circles with normal noise: columns `x1`, `x2` and the class `moon`."""
    from sklearn.datasets import make_moons

    points, classes = make_moons(rows, noise=noise, random_state=seed)
    return {"x1": points[:, 0], "x2": points[:, 1], "moon": classes}


def sentences(rows: int, seed: int) -> list[tuple[str, str]]:
    """Sentences with their sentiment, `praise` or `blame`; a twentieth carries the wrong label."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        praise = draw.random() < 0.5
        own, other = (_PRAISE, _BLAME) if praise else (_BLAME, _PRAISE)
        parts = []
        for _ in range(draw.randint(1, 2)):
            frame = draw.choice(_FRAMES)
            parts.append(
                frame.format(thing=draw.choice(_THINGS), word=draw.choice(own), opposite=draw.choice(other))
            )
        label = praise if draw.random() >= 0.05 else not praise
        made.append((" and ".join(parts), "praise" if label else "blame"))
    return made


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python made_data.py FILE.csv")
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "sentiment"])
        writer.writerows(sentences(3000, seed=7))
