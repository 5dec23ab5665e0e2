"""What people would use in Shoal's place, each set up as its own documentation advises."""
