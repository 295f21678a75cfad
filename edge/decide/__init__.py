"""Who answers for a picture, device or cloud, inside one budget."""
