"""The path of logged predictions, from the bytes of streams to a commit for many messages."""
