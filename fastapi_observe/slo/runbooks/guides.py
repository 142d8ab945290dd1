"""What the runbooks say: for each alert its meaning, the first questions with a query each, what helps."""

from __future__ import annotations

from typing import Final, NamedTuple


class RunbookStep(NamedTuple):
    """A question and the query that answers it; `{of}` selects the service, `{service}` its recorded series."""

    question: str
    query: str = ""


class RunbookGuide(NamedTuple):
    """One alert explained. `causes` are (what is seen, what it means); `false_alarm` says when it is one."""

    meaning: str
    impact: str
    steps: tuple[RunbookStep, ...]
    causes: tuple[tuple[str, str], ...]
    mitigation: tuple[str, ...]
    false_alarm: str


_SINCE_DEPLOY: Final = RunbookStep(
    "Did it begin with a deploy? Ages of the processes, in seconds:",
    "time() - max by (instance) (process_start_time_seconds{of})",
)
_DATABASE: Final = RunbookStep(
    "Is it the database? Time within which 95 % of the queries are answered:",
    "topk(5, histogram_quantile(0.95, sum by (operation, table, le) (rate(db_query_duration_seconds_bucket{of}[5m]))))",
)
_OTHERS: Final = RunbookStep(
    "Is it another service? Calls a second that failed:",
    "topk(5, sum by (service, outcome) (rate(external_requests_total{of_not_ok}[5m])))",
)
_CAUSES: Final = RunbookStep(
    "What fails? Exceptions a second:",
    "topk(5, sum by (endpoint, error_type) (rate(http_request_errors_total{of}[5m])))",
)
_LOOP: Final = RunbookStep(
    "Is the process itself full? Lag of the event loop, 99 % at most:",
    "histogram_quantile(0.99, sum by (instance, le) (rate(asyncio_event_loop_lag_seconds_bucket{of}[5m])))",
)

GUIDES: Final[dict[str, RunbookGuide]] = {
    "ErrorBudgetBurn": RunbookGuide(
        "Requests fail (or are too slow) so fast that the error budget is gone long before its period is over. The "
        "label `window` says how it was seen: `1h` burns fast, `3d` slowly. Both the long and the short window burn: "
        "it is still going on.",
        "Users see errors or wait. The summary names the route that is worst.",
        (_CAUSES, _SINCE_DEPLOY, _DATABASE, _OTHERS, _LOOP),
        (
            ("one route fails since a deploy", "the change is broken: roll back first, look for the reason afterwards"),
            ("all routes fail at once", "what all need is gone: database, network, configuration, certificate"),
            (
                "one other service has outcome `timeout` or `connect_error`",
                "it is theirs: shed what needs it, tell them",
            ),
            ("queries are slow, connections wait", "a lock, a missing index, a pool that is too small"),
            (
                "the event loop lags, CPU is full",
                "blocking code, or more traffic than the instances can take: add some",
            ),
            ("429 or 4xx rose with it", "one caller: see the log lines by `remote_addr` and `user_agent`"),
        ),
        ("Roll back the last deploy.", "Add instances, or shed load.", "Switch the feature off that causes it."),
        "Few requests make ratios jump: see how many failures there were. If they were real failures it is no false "
        "alarm; raise `min_bad_events`, or lower the objective, if nobody minds them.",
    ),
    "ErrorBudgetLow": RunbookGuide(
        "Less than a tenth of the error budget is left for the rest of the period.",
        "Nothing is on fire, but the next incident breaks the promise.",
        (_CAUSES, _SINCE_DEPLOY),
        (
            ("one incident spent it", "it has an end: the budget comes back as the incident leaves the period"),
            ("it fell slowly", "something small fails all the time: the table of routes below names it"),
        ),
        ("Put reliability before features until the budget has recovered.", "Hold back risky deploys."),
        "If it is always low and nobody complains, the objective is higher than users need: lower it.",
    ),
    "SLODataMissing": RunbookGuide(
        "The service is up, but no request of this objective is counted.",
        "The objective is blind: its alerts cannot fire.",
        (
            RunbookStep(
                "Which endpoints are counted at all?", "topk(10, count by (endpoint) (http_requests_total{of}))"
            ),
            RunbookStep(
                "Does the running app have the objectives of these rules?", "fastapi_observe_slo_config_info{of}"
            ),
        ),
        (
            ("the routes are there under other names", "they were renamed: make the bundle again"),
            ("nothing is counted at all", "`metrics=False`, or `install(app)` is gone"),
            ("the hash is another one", "app and rules are of different versions: deploy both"),
        ),
        ("Make the rules again (`python -m fastapi_observe bundle`) and load them.",),
        "Right after the first deploy of an objective, until the first scrape.",
    ),
    "ServiceDown": RunbookGuide(
        "Prometheus reaches no instance of the service. Burn rates are blind meanwhile: nothing is counted.",
        "Most likely nobody can use the service.",
        (
            RunbookStep("Which instances does Prometheus know?", "up{of}"),
            RunbookStep("When was the last one seen?", "max_over_time(timestamp(up{of} == 1)[6h:1m])"),
        ),
        (
            (
                "no target is known",
                "service discovery, or the `job` label was renamed: the selector of the rules is stale",
            ),
            ("targets refuse the connection", "the processes do not run: look at their last log lines and exit codes"),
            ("targets time out", "the network, or a process that is stuck"),
            (
                "targets answer 404 or 401",
                "`metrics_access`, `metrics_token` or `metrics_path` changed: users are fine",
            ),
        ),
        ("Start it again, or roll back.", "Ask for the front page by hand from outside."),
        "If users are served, only the scrape is broken: mend it at once all the same, the other alerts are blind.",
    ),
    "InstanceDown": RunbookGuide(
        "Prometheus has not reached one instance for 10 minutes.",
        "Less capacity; users notice only if the rest is full.",
        (RunbookStep("Which ones?", "up{of} == 0"), RunbookStep("How many are left?", "sum(up{of})")),
        (
            ("it was taken away on purpose", "its target must go too"),
            ("it crashes again and again", "see the runbook of InstanceRestarting"),
        ),
        ("Replace the instance.",),
        "An instance that was scaled away and is still listed.",
    ),
    "InstanceRestarting": RunbookGuide(
        "A process started three times or more within 30 minutes.",
        "Requests that were under way are lost each time.",
        (
            RunbookStep("How often?", "changes(process_start_time_seconds{of}[30m])"),
            RunbookStep("Does memory grow until it ends?", "max by (instance) (process_resident_memory_bytes{of})"),
        ),
        (
            ("memory rises to its limit", "a leak or a limit that is too low; the kernel's log says `oom-kill`"),
            ("it ends right after the start", "configuration, or a dependency that must be there at the start"),
        ),
        ("Roll back.", "Raise the memory limit for now."),
        "Several deploys in a row.",
    ),
    "EventLoopLagHigh": RunbookGuide(
        "The event loop runs what is due more than 250 ms late.",
        "Every request of this instance is that much slower.",
        (
            _LOOP,
            RunbookStep(
                "What ran meanwhile? Slowest endpoints:",
                "topk(5, histogram_quantile(0.95, "
                "sum by (endpoint, le) (rate(http_request_duration_seconds_bucket{of}[5m]))))",
            ),
            RunbookStep(
                "Is it the garbage collector? Seconds of each second:",
                "sum by (instance) (rate(python_gc_pause_seconds_sum{of}[5m]))",
            ),
        ),
        (
            ("CPU is full", "too much work in the loop: move it into a thread or a process"),
            ("CPU is idle", "a call that blocks (`requests`, `time.sleep`, a sync driver) inside `async def`"),
        ),
        ("Add instances.", "Make the path operation `def` instead of `async def`: it then runs in a thread."),
        "While the process starts and imports.",
    ),
    "DBPoolNearlyExhausted": RunbookGuide(
        "More than 90 % of the connections of a pool are in use.",
        "The next requests wait for a connection.",
        (
            RunbookStep("Does anybody wait already?", "sum by (pool) (db_connections_waiting{of})"),
            _DATABASE,
        ),
        (
            ("queries are slow", "a lock or a missing index: connections are held longer"),
            ("queries are fast", "connections are held across calls to other services, or never given back"),
        ),
        (
            "Make the pool larger, if the database allows it.",
            "Add instances only if the database has connections left.",
        ),
        "A batch job that may use them all.",
    ),
    "FileDescriptorsNearlyExhausted": RunbookGuide(
        "A process has opened more than 85 % of the files and sockets that it may.",
        "New connections will fail.",
        (RunbookStep("How many, of how many?", "process_open_fds{of} / process_max_fds{of}"), _OTHERS),
        (
            ("it rises for days", "responses or clients are not closed"),
            ("it rose with the traffic", "the limit (`ulimit -n`) is too low"),
        ),
        ("Restart instances one after the other.", "Raise the limit."),
        "None is known.",
    ),
    "TelemetrySpansDropped": RunbookGuide(
        "Spans are lost on their way to the trace store.",
        "Requests are not affected; traces have holes.",
        (RunbookStep("How many, and why?", "sum by (signal, reason) (rate(fastapi_observe_dropped_total{of}[5m]))"),),
        (
            ("reason `queue_full`", "the collector is slower than the spans come: sample less, or give it more"),
            ("any other reason", "the collector refuses or is gone: its log says why"),
        ),
        ("Lower `sample_ratio`.",),
        "A restart of the collector.",
    ),
    "TelemetryLogsDropped": RunbookGuide(
        "Log lines are lost.",
        "Requests are not affected; the log has holes.",
        (RunbookStep("How many, and why?", "sum by (signal, reason) (rate(fastapi_observe_dropped_total{of}[5m]))"),),
        (
            ("reason `write`", "the disk is full, or standard output is a pipe that nobody reads"),
            ("signal `otlp_logs`", "the collector refuses or is gone"),
        ),
        ("Raise `log_level`.",),
        "A restart of the collector.",
    ),
    "TelemetrySeriesLimit": RunbookGuide(
        "A metric has more label sets than it may keep; further ones are counted together as `__overflow__`.",
        "Sums stay right; what stands behind `__overflow__` cannot be told apart.",
        (RunbookStep("Which metric?", "sum by (metric) (increase(fastapi_observe_series_overflow_total{of}[1h]))"),),
        (("a metric of your own", "a label holds something without bounds: an id, a name, a path"),),
        ("Take the label off. `max_series_per_metric` is the limit.",),
        "None is known.",
    ),
    "SLORulesOutdated": RunbookGuide(
        "Instances run with other objectives than those that the rules were made from.",
        "Alerts may judge by the wrong numbers.",
        (RunbookStep("Which ones?", "count by (hash) (fastapi_observe_slo_config_info{of})"),),
        (
            ("all instances have the same, other hash", "the rules were not deployed with the app: make and load them"),
            ("there are several hashes", "a deploy is under way, or stuck half way"),
        ),
        ("`python -m fastapi_observe bundle`, then load `rules.yml`.",),
        "A deploy that takes longer than an hour.",
    ),
}
