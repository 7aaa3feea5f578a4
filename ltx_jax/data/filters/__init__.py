"""What frames say of themselves: shots, bars, motion, hashes, text."""
