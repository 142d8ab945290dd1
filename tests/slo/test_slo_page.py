"""The commands of docs/tutorial/objective.md, run one after the other as a reader would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from monitored import ROOT, free_port
from tools import needs

PAGE: Final = (ROOT / "docs" / "tutorial" / "objective.md").read_text("utf-8")
TIMEOUT: Final = 300
"""Seconds that all commands together may take."""

FASTER: Final = """
if [ -z "$OBSERVE_SOAK" ]; then  # shorter intervals instead of two evaluations half a minute apart
  sed -i -E 's/^( *interval): .*/\\1: 1s/; s/\\[1m\\]/[10s]/g' observability/rules.yml
  sed -i -E 's/scrape_interval: .*/scrape_interval: 1s/' observability/prometheus.yml
fi
sed -i "s/$USUAL_PORT/8000/" observability/prometheus.yml
"""
"""Commands added before the step that starts uvicorn."""


def test_the_page_leads_to_an_alert(tmp_path: Path) -> None:
    """Every command of the page succeeds in an empty directory; an alert fires and the budget is spent."""
    needs("promtool")
    needs("prometheus")
    needs("curl")
    app = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "main.py").write_text(app, "utf-8")
    ports = {"8000": str(free_port()), "9090": str(free_port())}
    steps = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    script = "set -e\n" + "".join((FASTER if "uvicorn" in step else "") + step for step in steps)
    for usual, free in ports.items():
        script = script.replace(usual, free)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"OBSERVE_SOAK": "", **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "USUAL_PORT": "8000"}
    process = subprocess.Popen(  # noqa: S603 - the page's own commands
        [needs("bash"), "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        with suppress(ProcessLookupError):  # all have ended by themselves
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown in output
    assert 'slo="checkout"' in output
    assert float(re.findall(r'^slo_error_budget_remaining_ratio\{slo="checkout"\} (\S+)', output, re.MULTILINE)[0]) < 0
