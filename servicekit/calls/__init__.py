"""What stands around each call: its deadline, its limits, the memory that it takes, its status."""
