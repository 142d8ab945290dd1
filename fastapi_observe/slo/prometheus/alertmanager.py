"""The Alertmanager configuration: the receivers of alerts, and the alerts that suppress others."""

from __future__ import annotations

from typing import Any, Final

PAGER: Final = "pager"
TICKETS: Final = "tickets"
NO_RECEIVER: Final = "none"
"""A receiver without a configuration: alerts of severity `info` stay in Alertmanager and on the dashboard."""

WORKING_HOURS: Final = "working-hours"
"""Name of the time interval in which tickets are sent; in UTC unless the user adds a `location`."""


def make_alertmanager() -> dict[str, Any]:
    """Return a configuration for every service with rules of fastapi-observe, not only this one.

    Only alerts of severity `page` go to the pager. The receivers are placeholders: `*.invalid` never resolves.
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
                    "active_time_intervals": [WORKING_HOURS],
                },
                {"receiver": NO_RECEIVER, "matchers": ['severity="info"']},
            ],
        },
        # Each source requires a label that only alerts of fastapi-observe have: two missing labels count as equal.
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
            {"name": PAGER, "webhook_configs": [{"url": "https://todo-page-on-call.invalid/", "send_resolved": True}]},
            {"name": TICKETS, "webhook_configs": [{"url": "https://todo-open-a-ticket.invalid/"}]},
            {"name": NO_RECEIVER},
        ],
        "time_intervals": [
            {
                "name": WORKING_HOURS,
                "time_intervals": [
                    {"weekdays": ["monday:friday"], "times": [{"start_time": "08:00", "end_time": "18:00"}]}
                ],
            }
        ],
    }


NOTES: Final = """\
# Copy this file and fill in the TODOs in the copy: this file is overwritten.
# TODO replace the webhooks that end in .invalid by a pager and a ticket system
# (pagerduty_configs, opsgenie_configs, slack_configs, email_configs, ...).
# TODO tickets are sent from 8:00 to 18:00 UTC on working days; to change the time zone, add for example
# `location: Europe/Berlin` to the interval (Alertmanager 0.25).
"""
