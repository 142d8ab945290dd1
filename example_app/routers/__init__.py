"""The shop's routes, one file for each subject."""
