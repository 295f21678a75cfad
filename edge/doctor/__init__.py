"""`sightline doctor`: small checks of a node and its services, each with what to do about it."""
