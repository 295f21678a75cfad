"""The demo model of Sightline: synthetic plates, a tiny detector, its training."""
