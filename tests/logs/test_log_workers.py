"""One log file of several worker processes: every line once and whole, whichever process is killed at any moment."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import interpreter
from servers_of_workers import Server, free_port

ROOT = Path(__file__).parents[2]
SOAK = "OBSERVE_SOAK" in os.environ

HERD = """
    BEGIN = b'{"timestamp":"2026-01-01T00:00:00.000000Z","level":"info",'
    import os, random, signal, sys, time, traceback
    from pathlib import Path
    from fastapi_observe.logs.writer import LineWriter
    from fastapi_observe.logs.file.file import LogFile

    path, acks, lines, rotation = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    pause = float(sys.argv[5])
    WORKERS, STEP, parent = 4, 20, os.getpid()
    draw = random.Random()

    def log_file(report):
        return LogFile(path, rotation, None, compress=True, on_internal_error=report)

    def work(name):
        sys.stdout = open(os.devnull, "w")
        file = log_file(lambda site, exc: os._exit(3))
        writer = LineWriter()
        writer.open()
        acknowledged = os.open(acks / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        number = 0
        while os.getppid() == parent:  # who is left alone ends
            for _ in range(STEP):
                number += 1
                line = BEGIN + b'"who":"%s","number":%d,"text":"%s"}\\n' % (name.encode(), number, b"x" * (number % 40))
                writer.write(line, file=file, file_line=line, urgent=number % STEP == 0)
            while len(writer):
                writer.flush(1.0)
            if any(file.dropped.values()):
                os._exit(4)
            os.write(acknowledged, b"%d\\n" % number)

    def start(slot, again):
        child = os.fork()
        if not child:
            try:
                work(f"{slot}.{again}")
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(5)
        return child

    def acked():
        total = 0
        for each in acks.iterdir():
            found = each.read_bytes().split()
            total += int(found[-1]) if found else 0
        return total

    running = {start(slot, 0): (slot, 0) for slot in range(WORKERS)}
    kills = acknowledged = 0
    while acknowledged < lines:
        time.sleep(draw.random() * pause)
        before, acknowledged = acknowledged, acked()
        if acknowledged - before < STEP:  # on a busy machine a worker needs longer than this to acknowledge a line
            continue
        child = draw.choice(sorted(running))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"a worker ended by itself: {status}")
        slot, again = running.pop(child)
        running[start(slot, again + 1)] = (slot, again + 1)
        kills += 1
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    last = log_file(print)
    last.write([BEGIN + b'"who":"last","number":1}\\n'])
    last.rotated_files.clean_up(last.path.parent)
    print(kills, sum(last.dropped.values()))
"""


def lines_in(directory: Path) -> list[bytes]:
    """Return every line of every file of a directory, with its end."""
    data = []
    for each in directory.iterdir():
        assert each.suffix in {".log", ".gz"}, f"{each.name} was left behind"
        found = gzip.decompress(each.read_bytes()) if each.suffix == ".gz" else each.read_bytes()
        data += found.splitlines(keepends=True)
    return data


def run(script: str, *arguments: object, seconds: int = 300) -> str:
    """Run `script` in a process of its own. Returns its output."""
    done = interpreter.run(script, *arguments, timeout=seconds)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_no_acknowledged_line_is_lost(tmp_path: Path) -> None:
    """Workers are killed while they write, rotate and compress: acknowledged lines are there, once and whole."""
    logs, acks = tmp_path / "logs", tmp_path / "acks"
    logs.mkdir()
    acks.mkdir()
    lines, rotation = (1_000_000, "100 KB") if SOAK else (40_000, "20 KB")
    kills, dropped = run(HERD, logs / "shop.log", acks, lines, rotation, 0.02 if SOAK else 0.01, seconds=900).split()
    found = lines_in(logs)
    counts = Counter((row["who"], row["number"]) for row in map(json.loads, found))
    assert all(line.endswith(b"\n") for line in found)
    assert (dropped, max(counts.values())) == ("0", 1)
    acknowledged = {each.name: int(each.read_bytes().split()[-1]) for each in acks.iterdir() if each.read_bytes()}
    lost = [
        (who, number) for who, last in acknowledged.items() for number in range(1, last + 1) if not counts[who, number]
    ]
    assert not lost
    assert sum(acknowledged.values()) >= lines
    assert len(list(logs.iterdir())) > 20
    print(f"\n{len(found)} lines, {len(list(logs.iterdir()))} files, {kills} kills")  # noqa: T201 - a figure


STEPS = """
    BEGIN = b'{"timestamp":"2026-01-01T00:00:00.000000Z","level":"info",'
    import fcntl, itertools, os, shutil, sys
    from fastapi_observe.logs.file.file import LogFile

    path, taken = sys.argv[1], {}

    def log_file():
        return LogFile(path, "400 B", None, compress=True, on_internal_error=print)

    def die_at(last):
        steps, write = itertools.count(1), os.write

        def watched(name, real):
            def call(*arguments, **options):
                if next(steps) == last:
                    if real is write:  # the kernel may have taken a part before the signal
                        write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    if name == "copyfileobj":
                        arguments[1].write(arguments[0].read(100))
                        arguments[1].flush()
                    os._exit(9)
                return real(*arguments, **options)
            return call

        os_names = ("open", "fdopen", "write", "rename", "unlink", "ftruncate", "utime")
        for module, name in (*((os, name) for name in os_names), (fcntl, "flock"), (shutil, "copyfileobj")):
            setattr(module, name, watched(name, getattr(module, name)))

    def work(step, acknowledged):
        write_all = os.write
        die_at(step)
        file = log_file()
        for number in range(12):
            file.write([BEGIN + b'"who":%d,"number":%d,"text":"%s"}\\n' % (step, number, b"x" * 30)])
            write_all(acknowledged, b"%d %d\\n" % (step, number))
            file.rotated_files.clean_up(file.path.parent)
        os._exit(7)

    acknowledged = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for step in itertools.count(1):
        child = os.fork()
        if not child:
            work(step, acknowledged)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 7:
            break
        assert code == 9, code
    last = log_file()
    last.write([BEGIN + b'"who":0,"number":0}\\n'])
    last.rotated_files.clean_up(last.path.parent)
    print(step)
"""


def test_a_process_may_die_at_every_step(tmp_path: Path) -> None:
    """A writer ends in each call that writes, rotates and compresses: lines written before are there, once."""
    logs = tmp_path / "logs"
    logs.mkdir()
    steps = run(STEPS, logs / "shop.log", tmp_path / "acknowledged")
    assert int(steps) > 50
    counts = Counter((row["who"], row["number"]) for row in map(json.loads, lines_in(logs)))
    assert max(counts.values()) == 1
    for row in (tmp_path / "acknowledged").read_text().splitlines():
        who, number = map(int, row.split())
        assert counts[who, number] == 1


APP = """
from fastapi import FastAPI

from fastapi_observe import LogDep, install

app = FastAPI()
install(app, log_file="logs/shop.log", log_rotation="5 KB", log_retention=None, service_name="shop")


@app.get("/x/{number}")
async def x(number: int, log: LogDep) -> int:
    log.error("it happened", number=number)
    return number
"""


def test_the_workers_of_a_server_share_one_file(tmp_path: Path) -> None:
    """`uvicorn --workers 3` writes to exactly the given file, each line once."""
    (tmp_path / "shop.py").write_text(APP)
    port = free_port()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-m", "uvicorn", "shop:app", "--workers", "3", "--port", str(port)]
        process = subprocess.Popen(  # noqa: S603 - a server of our own environment
            command, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, stdout=out, start_new_session=True
        )
        try:
            server = Server(process, port, tmp_path)
            until = monotonic() + 30
            while not answers(server):
                assert monotonic() < until
                sleep(0.05)
            for number in range(1, 200):
                assert server.get(f"/x/{number}") == (200, str(number).encode())
        finally:
            process.terminate()
            process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    lines = [json.loads(line) for line in lines_in(tmp_path / "logs")]
    for message in ("it happened", "HTTP request completed"):
        found = [line["fields"] for line in lines if line["message"] == message]
        numbers = [fields["number"] if "number" in fields else int(fields["url"][3:]) for fields in found]
        assert sorted(numbers)[-199:] == [*range(1, 200)]
    names = {each.name for each in (tmp_path / "logs").iterdir()}
    assert "shop.log" in names
    assert len(names) > 10
    assert all(name == "shop.log" or name.startswith("shop.2") for name in names)


def answers(server: Server) -> bool:
    """Return whether the server responds."""
    with suppress(OSError, http.client.HTTPException):
        return server.get("/x/0")[0] == 200
    return False
