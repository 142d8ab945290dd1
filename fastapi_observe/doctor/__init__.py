"""Find what is wrong with a set-up: each check has a verdict, what was found, and the next step."""
