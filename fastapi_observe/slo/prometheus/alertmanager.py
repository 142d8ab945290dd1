"""Who is told of which alert, and which alerts keep silent beside others: the configuration of Alertmanager."""

from __future__ import annotations

from typing import Any, Final

PAGER: Final = "pager"
TICKETS: Final = "tickets"
NOBODY: Final = "nobody"

WORK: Final = "working-hours"
"""Name of the time in which tickets are sent; in UTC until somebody says another `location`."""


def make_alertmanager() -> dict[str, Any]:
    """Return the configuration; it holds for every service with rules of fastapi-observe, not just this one.

    Only pages wake anybody. The receivers are placeholders: `*.invalid` never resolves.
    """
    return {
        "route": {
            "receiver": TICKETS,
            "group_by": ["service", "slo"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "12h",
            "routes": [
                {
                    "receiver": PAGER,
                    "matchers": ['severity="page"'],
                    "group_wait": "10s",
                    "group_interval": "1m",
                    "repeat_interval": "4h",
                },
                {
                    "receiver": TICKETS,
                    "matchers": ['severity="ticket"'],
                    "group_wait": "5m",
                    "repeat_interval": "3d",
                    "active_time_intervals": [WORK],
                },
                {"receiver": NOBODY, "matchers": ['severity="info"']},
            ],
        },
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="ServiceDown"', 'service=~".+"'],
                "target_matchers": ['alertname!="ServiceDown"', 'severity=~"page|ticket|info"'],
                "equal": ["service"],
            },
            {
                "source_matchers": ['severity="page"', 'slo=~".+"'],
                "target_matchers": ['severity="ticket"', 'slo=~".+"'],
                "equal": ["service", "slo"],
            },
            {
                "source_matchers": ['severity=~"page|ticket"', 'service=~".+"'],
                "target_matchers": ['severity="info"'],
                "equal": ["service"],
            },
        ],
        "receivers": [
            {"name": PAGER, "webhook_configs": [{"url": "https://todo-page-somebody.invalid/", "send_resolved": True}]},
            {"name": TICKETS, "webhook_configs": [{"url": "https://todo-open-a-ticket.invalid/"}]},
            {"name": NOBODY},
        ],
        "time_intervals": [
            {
                "name": WORK,
                "time_intervals": [
                    {"weekdays": ["monday:friday"], "times": [{"start_time": "08:00", "end_time": "18:00"}]}
                ],
            }
        ],
    }


NOTES: Final = """\
# Copy this file and fill in the TODOs in the copy: this one is made again.
# TODO replace the webhooks that end in .invalid by what wakes a person and what opens a ticket
# (pagerduty_configs, opsgenie_configs, slack_configs, email_configs, ...).
# TODO tickets are sent from 8 to 18 o'clock UTC on working days: add `location: Europe/Berlin`, say, to the interval
# (Alertmanager 0.25).
"""
