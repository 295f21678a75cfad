"""Run every benchmark of this folder, one after the other: `python -m bench`."""

import pkgutil
import runpy

import bench

if __name__ == "__main__":
    for module in pkgutil.iter_modules(bench.__path__):
        if not module.name.startswith("_"):
            runpy.run_module(f"bench.{module.name}", run_name="__main__")
