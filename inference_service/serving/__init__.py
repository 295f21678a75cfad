"""Who gets on a model, when, with whom, and the threads that do it."""
