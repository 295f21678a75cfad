"""The commands of an edge node at a terminal: `log`, `infer`, `spool` and `doctor`."""
