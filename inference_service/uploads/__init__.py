"""Images that are sent once and asked about by reference: their store, quotas and references."""
