"""How good are the features: k-NN, linear probe, fine-tuning, retrieval."""
