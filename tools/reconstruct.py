"""Reconstruct a film of any length. See --help."""

from zoo.cli import find, run

if __name__ == "__main__":
    run(find("reconstruct"))
