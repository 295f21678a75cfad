"""Read access to stored predictions: visibility, query threads and paging."""
