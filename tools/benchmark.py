"""Benchmark models. See --help."""

from zoo.cli import find, run

if __name__ == "__main__":
    run(find("benchmark"))
