"""Fetch and inspect data, films to latents and back. See --help."""

from zoo.cli import find, run

if __name__ == "__main__":
    run(find("data"))
