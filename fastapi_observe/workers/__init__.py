"""Worker processes of one server: how they find each other and share files.

`directory.py` finds the supervisor and the directory that its workers share. `worker.py` joins that directory; read it
first. `files.py` describes the files of one worker, `archive.py` the file with the totals of those that have ended, and
`locks.py` how a worker shows that it runs. What the values mean is known in `metrics/shared/` only.
"""
