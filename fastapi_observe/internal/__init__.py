"""What every other folder may use: errors of our own, forks, ids, networks, the version."""
