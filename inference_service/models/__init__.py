"""The models: where they lie, what they say about themselves, and how one looks at an image."""
