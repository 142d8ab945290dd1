"""Routes of the shop, one file for each subject."""
