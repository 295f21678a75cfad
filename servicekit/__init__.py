"""What both servers need and neither is about."""
