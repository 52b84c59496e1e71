"""Loss functions and error measures that several tasks share, in float32 or wider."""
