"""The process itself: its CPU, memory, disks, event loop and threads."""
