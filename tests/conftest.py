"""What holds for every test."""

from hypothesis import settings

from tests.signals import start_children_with_defaults

# How long an example takes says how busy the machine is; pytest-timeout ends what hangs.
settings.register_profile("sightline", deadline=None)
settings.load_profile("sightline")

start_children_with_defaults()
