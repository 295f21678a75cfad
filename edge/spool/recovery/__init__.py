"""Recovery of spools that are damaged, copied or restored. A sound spool needs none of it."""
