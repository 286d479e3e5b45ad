"""Versions, devices and kernels: what serves which call, and why. See --help."""

from zoo.cli import find, run

if __name__ == "__main__":
    run(find("doctor"))
