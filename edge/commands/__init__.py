"""The commands of an edge node at a terminal: `log` and `infer`."""
