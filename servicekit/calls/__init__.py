"""The layers around each call: deadline, rate limits, memory limits, status."""
