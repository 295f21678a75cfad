"""Storage of predictions: the protocol of a store, and its implementations."""
