"""From a record that is handed over to bytes on their way to the disk."""
