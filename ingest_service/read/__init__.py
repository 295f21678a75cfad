"""Reading what is stored: who may see what, a few queries at a time, a page at a time."""
