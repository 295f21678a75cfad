"""Log lines, metrics and spans of a process. Nothing here blocks a call."""
