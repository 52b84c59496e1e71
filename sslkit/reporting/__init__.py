"""Reports, charts and other pictures of results."""
