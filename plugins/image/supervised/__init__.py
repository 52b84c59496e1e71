"""Tasks on images that learn from labels, or from a model that did."""
