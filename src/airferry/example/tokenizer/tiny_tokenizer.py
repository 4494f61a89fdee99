"""A tokenizer of letters, the blank and one number for all that is left."""

import string

__version__ = "1.0"


class Tokenizer:
    """Turns a text into numbers from 0 to `size - 1`."""

    alphabet = " " + string.ascii_lowercase

    @property
    def size(self):
        """How many different tokens there are."""
        return len(self.alphabet) + 1

    def encode(self, text):
        """Return the tokens of a text; runs of white space are one blank."""
        known = {letter: number for number, letter in enumerate(self.alphabet)}
        return [known.get(letter, len(self.alphabet)) for letter in " ".join(text.lower().split())]
