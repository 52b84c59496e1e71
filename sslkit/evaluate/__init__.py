"""How good are the features: k-NN, a linear probe, fine-tuning."""
