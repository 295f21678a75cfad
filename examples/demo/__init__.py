"""`make demo`: the whole of Sightline on one machine, with an outage in the middle."""
