"""The `sightline` command as a module: `python -m sightline --help`."""

from sightline.cli.app import main

if __name__ == "__main__":
    main("python -m sightline")
