"""Train a bigram language model by gradient descent on packed sequences."""

from __future__ import annotations

import math
from pathlib import Path

from ferrysteps.common import load_config, read_json, write_json


def softmax(row: list[float]) -> list[float]:
    """Turn scores into probabilities."""
    top = max(row)
    weights = [math.exp(score - top) for score in row]
    total = sum(weights)
    return [weight / total for weight in weights]


def main() -> None:
    """Minimise the cross entropy of the next token, full batch."""
    config = load_config(str(Path(__file__).parent / "config" / "tiny.yaml"))
    packed = read_json(config["packed"])
    size = packed["vocabulary"]
    counts = [[0.0] * size for _ in range(size)]
    for sequence in packed["train"]:
        for current, following in zip(sequence, sequence[1:]):
            counts[current][following] += 1
    pairs = sum(map(sum, counts))
    scores = [[0.0] * size for _ in range(size)]
    losses = []
    for _ in range(int(config["iterations"])):
        loss = 0.0
        for current, row in enumerate(counts):
            total = sum(row)
            if not total:
                continue
            probabilities = softmax(scores[current])
            for following, count in enumerate(row):
                if count:
                    loss -= count * math.log(probabilities[following])
                step = float(config["learning_rate"]) * (count / total - probabilities[following])
                scores[current][following] += step
        losses.append(loss / pairs)
    write_json(config["output"], {"scores": scores, "losses": losses})
    print(f"trained on {int(pairs)} pairs: loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
