"""What a process tells about itself: log lines, metrics, spans. Nothing here makes a call wait."""
