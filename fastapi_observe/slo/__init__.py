"""From objectives to rules, tests of the rules, alerts, dashboards and runbooks."""
