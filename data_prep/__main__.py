"""`python -m data_prep`: its commands, a line each."""

import pathlib

from bert_jax.cli import commands, print_lines

if __name__ == "__main__":
    print_lines(commands(pathlib.Path(__file__).parent))
