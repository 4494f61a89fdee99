"""Measure the perplexity of a bigram model on sequences that it was not trained on."""

from __future__ import annotations

import math
import platform
from pathlib import Path

from tabulate import tabulate

from ferrysteps.common import load_config, read_json, write_json


def main() -> None:
    """Compare the model with guessing, print a table and write the figures."""
    config = load_config(str(Path(__file__).parent / "config" / "tiny.yaml"))
    packed = read_json(config["packed"])
    scores = read_json(config["model"])["scores"]
    total, pairs = 0.0, 0
    for sequence in packed["held_out"]:
        for current, following in zip(sequence, sequence[1:]):
            row = scores[current]
            top = max(row)
            total += top + math.log(sum(math.exp(score - top) for score in row)) - row[following]
            pairs += 1
    perplexity = math.exp(total / pairs)
    figures = {"perplexity": round(perplexity, 3), "guessing": packed["vocabulary"], "pairs": pairs}
    write_json(config["output"], figures)
    rows = [["bigram model", f"{perplexity:.2f}"], ["guessing", f"{packed['vocabulary']:.2f}"]]
    print(tabulate(rows, headers=[f"on {platform.machine()}", "perplexity"]))
    if perplexity > packed["vocabulary"] / 2:
        raise SystemExit("the model has learned nothing")


if __name__ == "__main__":
    main()
