"""The way of logged predictions in: from the bytes of a stream to one commit for many of them."""
