"""Analysis of video frames: shots, black bars, motion, perceptual hashes and text."""
