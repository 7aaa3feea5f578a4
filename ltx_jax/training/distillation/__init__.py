"""The third stage: students that take few steps, from a teacher that takes many."""
