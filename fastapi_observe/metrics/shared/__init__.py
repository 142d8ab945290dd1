"""One `/metrics` for several worker processes.

The words here, which `workers/files.py` explains for files:

- A family is a metric with all its series. Its description is JSON that tells other workers how to expose it.
- A cell is one number of a series: a count, a sum, a bucket. The cells of all series of a worker are in its value file;
  the index file says which cells belong to which series.
- The owner of a family is the install or the registry that it comes from, the same in all workers.
- `local_only` is what found no space in the files: only this worker reports it.
"""
