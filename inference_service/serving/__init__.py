"""Scheduling of requests: admission, fair queueing, batching and the worker threads."""
