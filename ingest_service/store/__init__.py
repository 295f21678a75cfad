"""Where predictions are kept: what the service asks of a store, and the stores that there are."""
