"""Pack a text into fixed-length training sequences, with the tokenizer that is baked in as a Git overlay."""

from __future__ import annotations

import sys
from pathlib import Path

from ferrysteps.common import load_config, write_json


def main() -> None:
    """Tokenise, split into sequences, keep every tenth for evaluation."""
    config = load_config(str(Path(__file__).parent / "config" / "tiny.yaml"))
    sys.path.insert(0, config["tokenizer"])
    import tiny_tokenizer

    text = Path(config["corpus"]).read_text(encoding="utf-8")
    tokenizer = tiny_tokenizer.Tokenizer()
    tokens = tokenizer.encode(text)
    length = int(config["sequence_length"])
    sequences = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    held_out = sequences[::10]
    train = [sequence for index, sequence in enumerate(sequences) if index % 10]
    write_json(
        config["output"],
        {
            "tokenizer": tiny_tokenizer.__version__,
            "vocabulary": tokenizer.size,
            "train": train,
            "held_out": held_out,
        },
    )
    print(
        f"packed {len(tokens)} tokens into {len(train)} training and {len(held_out)} held-out sequences"
        f" of {length}, tokenizer {tiny_tokenizer.__version__}"
    )


if __name__ == "__main__":
    main()
