"""Videos with their sound: source and what stands beside both rooms."""
