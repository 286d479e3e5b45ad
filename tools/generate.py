"""Make pictures of prompts. See --help."""

from zoo.cli import find, run

if __name__ == "__main__":
    run(find("generate"))
