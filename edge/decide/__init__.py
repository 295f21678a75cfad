"""Who answers for an image, device or cloud, inside one budget."""
