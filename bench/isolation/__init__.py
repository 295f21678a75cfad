"""Whether one caller is answered beside a flood of another: `python -m bench.isolation`."""
