"""One `/metrics` for several worker processes.

Who calls whom, for one install:

- `WorkerGroup` (`join.py`) finds out whether this process is one of several workers, and makes the `Worker` that all
  installs of the process share. `workers/` knows files and processes, but nothing about metrics.
- `MetricSharing` (`sharing.py`) moves the metrics into the files of that worker, and back.
- While they are there, `MultiprocessView` (`view.py`) makes the scrape response. It writes this package's metrics
  (`SharedCells`, `cells.py`), those of prometheus_client (`PrometheusClientCells`) and what collectors return at scrape
  time (`ScrapeTimeCollectors`), and reads those of all workers (`MergedFamilies`, `merged.py`; `SampleFamily`,
  `samples.py`, for metrics that are not from this package). `collectors.py` passes them on to the rendering.

The words here, which `workers/files.py` explains for files:

- A family is a metric with all its series. Its description is JSON from which other workers know how to expose it.
- A cell is one number of a series: a count, a sum, a bucket. The cells of all series of a worker are in its value file;
  the index file says which cells belong to which series.
- The owner of a family is the install or the registry that it comes from, the same in all workers.
- To bind a series is to give it cells in the value file; to move it is to bind one that has values already, which are
  kept. `local_only` is what found no space in the files: only this worker reports it.
- A scrape-time value is computed when it is read: by a gauge's function, or by a collector. A worker publishes those
  values: it writes them to its cells when another worker is scraped.
- A live worker runs. One that has ended is merged into the archive, a file with the totals of all ended workers.
- `mode` is how the values of live workers become one (`sum`, `max`, `pid`, ...), `archive_mode` what the archive keeps.
"""
