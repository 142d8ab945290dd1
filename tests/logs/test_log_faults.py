"""Full, removed and read-only disks, and a standard output that is not read: the app goes on, all lines are counted."""

from __future__ import annotations

import gzip
import json
import textwrap
from typing import TYPE_CHECKING, Any

import interpreter
import pytest
from tools import needs, tmpfs

if TYPE_CHECKING:
    from pathlib import Path

APP = """
    import json, os, resource, shutil, sys, threading, time
    from pathlib import Path
    from fastapi import FastAPI
    from fastapi_observe import install
    from prometheus_client import generate_latest

    path, shown = Path(sys.argv[1]), Path(sys.argv[2])
    app = FastAPI()
    observe = install(app, service_name="shop", log_file=str(path), log_level="debug", **json.loads(sys.argv[3]))
    log = observe.log

    def fail(begin, lines):
        for number in range(begin, begin + lines):
            log.error("secret", number=number)

    def counts(signal):
        found = {}
        for row in generate_latest(observe.metrics.registry).decode().splitlines():
            name, _, value = row.partition(" ")
            kind = name.partition("{")[0].removeprefix("fastapi_observe_")
            reason = name.partition('reason="')[2].partition('"')[0]
            if f'signal="{signal}"' in name and not kind.endswith("_created"):
                found[reason or kind] = int(float(value))
        return found

    def resumes(number):
        '''Log until a line is written; return the next number.'''
        until = time.monotonic() + (1.0 if "OBSERVE_SOAK" in os.environ else 20.0)
        before = counts("log_file")["exported_total"]
        while counts("log_file")["exported_total"] == before:
            assert time.monotonic() < until, "not written again"
            time.sleep(0.02)
            fail(number, 1)
            number += 1
        return number

    def end():
        observe.logs.flush(5.0)
        shown.write_text(json.dumps({name: counts(name) for name in ("logs", "log_file")}))
        observe.close()
"""


def run(script: str, path: Path, shown: Path, stdout: int | None = None, **options: str | None) -> tuple[Any, str]:
    """Run an app that logs to `path`. Returns its counts by signal, and standard output."""
    code = textwrap.dedent(APP) + textwrap.dedent(script)
    done = interpreter.run(code, path, shown, json.dumps(options), stdout=stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    counts = json.loads(shown.read_text())
    for each in counts.values():
        reasons = {"queue_full", "stdout_write", "file_write", "internal_error"} & each.keys()
        dropped = sum(each[reason] for reason in reasons)
        assert each["produced_total"] == each["exported_total"] + dropped + each["queue_items"]
    return counts, done.stdout or ""


def found_in(directory: Path) -> list[dict[str, Any]]:
    """Parse the lines of all log files in a directory: complete, valid, once."""
    lines = []
    for each in sorted(directory.glob("*.log*")):
        if each.suffix not in {".log", ".gz"}:  # its lines still are in the file that it was to take the place of
            continue
        data = gzip.decompress(each.read_bytes()) if each.suffix == ".gz" else each.read_bytes()
        assert not data or data.endswith(b"\n")
        lines += [json.loads(line) for line in data.splitlines()]
    numbers = [line["fields"]["number"] for line in lines if "number" in line["fields"]]
    assert len(numbers) == len(set(numbers))
    return lines


def check(counts: Any, directory: Path, standard_output: str) -> list[dict[str, Any]]:
    """Check that lines in the files were counted, all others as dropped, and that this was logged without contents."""
    lines = found_in(directory)
    assert counts["log_file"]["exported_total"] == len(lines)
    rows = [json.loads(row) for row in standard_output.splitlines()]
    assert counts["logs"]["exported_total"] == counts["log_file"]["produced_total"] == len(rows)
    messages = [row["message"] for row in rows if row["message"] != "secret"]
    assert 1 <= len(messages) <= 2
    assert not any("secret" in each for each in messages)
    return lines


def test_a_full_disk(tmp_path: Path) -> None:
    """Lines are counted as dropped, none is torn, and soon after there is room lines are written."""
    with tmpfs(tmp_path / "disk", "size=2m") as disk:
        script = """
            filler = path.parent / "filler"
            fail(0, 50)
            with filler.open("wb") as stream, __import__("contextlib").suppress(OSError):
                while True:
                    os.write(stream.fileno(), b"x" * 1000)
            fail(50, 200)
            assert counts("log_file")["file_write"] > 100, counts("log_file")
            filler.unlink()
            resumes(250)
            end()
        """
        counts, shown = run(script, disk / "app.log", tmp_path / "shown")
        lines = check(counts, disk, shown)
    assert "No space left on device" in shown
    assert counts["log_file"]["file_write"] > 100
    assert max(line["fields"].get("number", 0) for line in lines) >= 250


def test_a_limit_of_file_size(tmp_path: Path) -> None:
    """A batch that the system takes only a part of is removed again; without the limit lines are written."""
    script = """
        fail(0, 300)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, -1))
        fail(300, 10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        resumes(310)
        end()
    """
    counts, shown = run(script, tmp_path / "app.log", tmp_path / "shown", log_compression=None)
    lines = check(counts, tmp_path, shown)
    assert {line["fields"].get("number") for line in lines} >= {*range(300)}
    assert counts["log_file"]["file_write"] >= 10


@pytest.mark.parametrize("name", ["app.log", "app.{pid}.log"])
def test_a_file_system_that_becomes_read_only(tmp_path: Path, name: str) -> None:
    """Lines are counted as dropped, and written soon after it is writable again."""
    with tmpfs(tmp_path / "disk", "size=2m") as disk:
        script = f"""
            fail(0, 20)
            observe.logs._file.close()
            assert os.system("{needs("mount")} -o remount,ro " + str(path.parent)) == 0
            fail(20, 20)
            assert counts("log_file")["file_write"] >= 20
            assert os.system("{needs("mount")} -o remount,rw " + str(path.parent)) == 0
            resumes(40)
            end()
        """
        counts, shown = run(script, disk / name, tmp_path / "shown")
        check(counts, disk, shown)
    assert "Read-only file system" in shown


def test_a_directory_that_is_removed(tmp_path: Path) -> None:
    """It is created again; until that is possible, lines are counted as dropped."""
    script = """
        fail(0, 20)
        shutil.rmtree(path.parent)
        fail(20, 20)
        shutil.rmtree(path.parent)
        path.parent.touch()
        fail(40, 20)
        assert counts("log_file")["file_write"] >= 20
        path.parent.unlink()
        resumes(60)
        end()
    """
    directory = tmp_path / "logs"
    counts, shown = run(script, directory / "app.log", tmp_path / "shown")
    assert max(line["fields"].get("number", 0) for line in found_in(directory)) >= 60
    assert counts["log_file"]["exported_total"] == 40 + len(found_in(directory))
    assert shown.count(": Not a directory. Lines are dropped") == 1


def test_a_standard_output_that_is_not_read(tmp_path: Path) -> None:
    """The loop goes on, errors are in the file before the call returns, the lowest levels are dropped."""
    script = """
        import asyncio, logging
        logging.getLogger("asyncio").setLevel("WARNING")
        os.dup2(os.pipe()[1], 1)

        writer = observe.logs._writer

        async def log_some(say, numbers):
            for number in numbers:
                say(str(number), number=number)
                while number % 100 == 0 and len(writer._queue) > 5000:  # its bound knows no levels but errors
                    await asyncio.sleep(0.001)

        async def main():
            await log_some(log.debug, range(12_000))
            await log_some(log.info, range(12_000, 18_000))
            for number in range(18_000, 18_020):
                began = time.monotonic()
                log.error("e", number=number)
                late = time.monotonic() - began  # it waits 0.05 seconds at most for the thread to be out of the file
                assert late > 0.05 or b'"number":%d}' % number in path.read_bytes()[-400:], number

        asyncio.run(main())
        until = time.monotonic() + 20
        while writer._queue:  # what was not offered to standard output yet
            assert time.monotonic() < until
            observe.logs.flush(0.1)
        backlog = writer._backlog
        taken = backlog.take(1 << 30)
        waiting = [json.loads(each.line) for each in taken]
        backlog.put_back(taken)
        levels = [each["level"] for each in waiting]
        assert {level: levels.count(level) for level in levels}["error"] == 20, levels[-1]
        assert levels.count("info") == 6000, levels.count("info")
        assert 3000 < levels.count("debug") <= 3980, levels.count("debug")
        assert [each["fields"]["number"] for each in waiting] == sorted(each["fields"]["number"] for each in waiting)
        end()
        os._exit(0)
    """
    counts, _ = run(script, tmp_path / "app.log", tmp_path / "shown", log_compression=None)
    assert counts["log_file"]["exported_total"] == 18_020 == len(found_in(tmp_path))
    assert counts["logs"]["produced_total"] == 18_020
    assert counts["logs"]["queue_full"] > 7000


def test_a_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    """Lines that standard output refuses are counted there, and are in the file."""
    script = """
        fail(0, 50)
        end()
    """
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        counts, _ = run(script, tmp_path / "app.log", tmp_path / "shown", stdout=full.fileno())
    assert counts["logs"]["stdout_write"] == 50
    assert counts["log_file"]["exported_total"] == 50 == len(found_in(tmp_path))
