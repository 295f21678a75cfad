"""The checks of `sightline doctor`: small checks of a node and its services."""
