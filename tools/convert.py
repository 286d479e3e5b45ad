"""Convert checkpoints of other projects. See --help."""

from zoo.cli import find, run

if __name__ == "__main__":
    run(find("convert"))
