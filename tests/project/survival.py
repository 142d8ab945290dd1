"""The table "What survives what" of docs/explanation/survival.md: the tests that hold each cell."""

from __future__ import annotations

from typing import Final

HELD_BY: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "SIGTERM, Collector healthy": {
        "metrics": (
            "end_to_end/test_what_survives.py::test_sigterm",
            "export/test_otlp_push.py::test_metrics_are_pushed_at_intervals",
        ),
        "logs": ("end_to_end/test_what_survives.py::test_sigterm",),
        "spans": ("export/test_export_lifetime.py::test_no_span_is_lost_when_a_server_is_terminated",),
    },
    "SIGTERM, Collector down or hanging": {
        "metrics": ("end_to_end/test_what_survives.py::test_sigterm_without_a_collector",),
        "logs": ("end_to_end/test_what_survives.py::test_sigterm_without_a_collector",),
        "spans": (
            "end_to_end/test_chaos.py::test_chaos",
            "export/test_export_lifetime.py::test_close_during_a_request",
        ),
    },
    "A worker is killed (`kill -9`, out of memory)": {
        "metrics": ("workers/test_workers.py::test_workers_killed_at_any_moment_lose_nothing",),
        "logs": (
            "end_to_end/test_what_survives.py::test_kill",
            "end_to_end/test_what_survives.py::test_kill_amid_requests",
            "logs/test_line_writer.py::test_an_urgent_line_is_written_at_once_and_in_order",
        ),
        "spans": ("end_to_end/test_what_survives.py::test_kill",),
    },
    "A worker is recycled": {
        "metrics": (
            "end_to_end/test_what_survives.py::test_a_recycled_worker",
            "workers/test_worker_recycling.py::test_totals_survive_the_last_worker",
        ),
        "logs": ("end_to_end/test_what_survives.py::test_a_recycled_worker",),
        "spans": ("end_to_end/test_what_survives.py::test_a_recycled_worker",),
    },
    "Fork (`gunicorn --preload`), end of a multiprocessing child": {
        "metrics": (
            "workers/test_workers.py::test_a_forked_worker_begins_at_zero",
            "workers/test_workers.py::test_a_fork_takes_everything_apart",
        ),
        "logs": (
            "logs/test_line_writer.py::test_fork",
            "logs/test_line_writer.py::test_a_forked_child_writes_at_once",
            "internal/test_forks.py::test_children_are_flushed_when_they_end",
        ),
        "spans": (
            "export/test_export_lifetime.py::test_a_fork_sends_every_span_once",
            "internal/test_forks.py::test_children_are_flushed_when_they_end",
        ),
    },
    "Collector down for a while": {
        "metrics": ("end_to_end/test_what_survives.py::test_an_outage",),
        "logs": ("end_to_end/test_what_survives.py::test_an_outage",),
        "spans": (
            "end_to_end/test_chaos.py::test_chaos",
            "export/test_export.py::test_an_outage_keeps_the_newest_spans",
            "export/test_export.py::test_spans_that_are_wanted_later_stay_queued",
            "export/test_export.py::test_probes_carry_no_spans",
            "export/test_export.py::test_memory_is_bounded_with_long_values",
            "export/test_export.py::test_every_span_is_counted",
        ),
    },
    "Disk full (`log_file`)": {
        "metrics": ("end_to_end/test_what_survives.py::test_a_log_file_that_cannot_be_written",),
        "logs": (
            "logs/test_log_faults.py::test_a_full_disk",
            "end_to_end/test_what_survives.py::test_a_log_file_that_cannot_be_written",
        ),
        "spans": ("end_to_end/test_what_survives.py::test_a_log_file_that_cannot_be_written",),
    },
    "`/dev/shm` full": {
        "metrics": (
            "end_to_end/test_what_survives.py::test_shared_memory_that_is_full",
            "workers/test_worker_files.py::test_a_full_disk_is_no_end",
            "metrics/shared/test_join.py::test_a_worker_that_cannot_join_joins_later",
        ),
        "logs": ("end_to_end/test_what_survives.py::test_shared_memory_that_is_full",),
        "spans": ("end_to_end/test_what_survives.py::test_shared_memory_that_is_full",),
    },
    "The workers' directory is removed (`RemoveIPC`, a cleaner)": {
        "metrics": (
            "end_to_end/test_what_survives.py::test_a_workers_directory_that_is_removed",
            "metrics/shared/test_worker_removal.py::test_a_server_whose_directory_is_removed",
            "metrics/shared/test_worker_removal.py::test_each_worker_goes_on_by_itself",
        ),
        "logs": ("end_to_end/test_what_survives.py::test_a_workers_directory_that_is_removed",),
        "spans": ("end_to_end/test_what_survives.py::test_a_workers_directory_that_is_removed",),
    },
    "Workers share a log file that is rotated; one is killed": {
        "metrics": ("workers/test_workers.py::test_workers_killed_at_any_moment_lose_nothing",),
        "logs": ("logs/test_log_workers.py::test_no_acknowledged_line_is_lost",),
        "spans": ("end_to_end/test_what_survives.py::test_kill",),
    },
    "Log file or its directory removed or rotated by another program": {
        "metrics": ("end_to_end/test_what_survives.py::test_a_log_file_that_cannot_be_written",),
        "logs": (
            "logs/test_log_file.py::test_a_file_that_another_program_moves_away_is_created_again",
            "logs/test_log_faults.py::test_a_directory_that_is_removed",
            "end_to_end/test_what_survives.py::test_a_log_file_that_cannot_be_written",
        ),
        "spans": ("end_to_end/test_what_survives.py::test_a_log_file_that_cannot_be_written",),
    },
    "Standard output is not read": {
        "metrics": ("end_to_end/test_what_survives.py::test_standard_output_that_nobody_reads",),
        "logs": (
            "logs/test_log_faults.py::test_a_standard_output_that_is_not_read",
            "logs/test_line_writer.py::test_a_stopped_reader_does_not_stop_the_caller",
        ),
        "spans": ("end_to_end/test_what_survives.py::test_standard_output_that_nobody_reads",),
    },
    "The clock jumps": {
        "metrics": ("end_to_end/test_what_survives.py::test_a_clock_that_jumps",),
        "logs": ("end_to_end/test_what_survives.py::test_a_clock_that_jumps",),
        "spans": ("end_to_end/test_what_survives.py::test_a_clock_that_jumps",),
    },
    "A flood of scrapes": {
        "metrics": (
            "workers/test_worker_servers.py::test_many_scrapes_at_once",
            "end_to_end/test_what_survives.py::test_a_flood_of_scrapes",
            "metrics/shared/test_worker_scrapes.py::test_waiting_scrapes_share_the_next_response",
        ),
        "logs": ("end_to_end/test_what_survives.py::test_a_flood_of_scrapes",),
        "spans": ("end_to_end/test_what_survives.py::test_a_flood_of_scrapes",),
    },
    "An internal error of fastapi-observe": {
        "metrics": (
            "end_to_end/test_faults_inside.py::test_whatever_fails_the_app_answers_as_without_us",
            "end_to_end/test_faults.py::test_a_signal_that_fails_does_not_affect_requests",
            "end_to_end/test_faults.py::test_an_internal_error_does_not_affect_requests",
        ),
        "logs": ("end_to_end/test_faults.py::test_a_signal_that_fails_does_not_affect_requests",),
        "spans": (
            "end_to_end/test_faults.py::test_a_signal_that_fails_does_not_affect_requests",
            "end_to_end/test_faults.py::test_a_span_processor_that_raises",
        ),
    },
}
"""Tests by event and signal, as paths below tests/."""
