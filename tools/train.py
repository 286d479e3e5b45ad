"""Train a model: `python tools/train.py` is the quickstart. See `zoo train --help`."""

from zoo.cli import find, run

if __name__ == "__main__":
    run(find("train"))
