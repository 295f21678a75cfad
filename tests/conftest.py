"""What holds for every test."""

from hypothesis import settings

# How long an example takes says how busy the machine is; pytest-timeout ends what hangs.
settings.register_profile("sightline", deadline=None)
settings.load_profile("sightline")
