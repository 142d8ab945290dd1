"""The log file, its rotation and its retention."""
