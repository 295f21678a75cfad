"""What happens to spools that are damaged, copied or put back. A sound spool needs none of it."""
