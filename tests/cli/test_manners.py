"""What every verb does: one line and a code on failure, one document with --json, nothing heavy before it runs."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lissom.cli import group as groups
from lissom.cli import run
from lissom.cli.group import VERBS, group, verb
from lissom.cli.output import Output, left
from lissom.errors import GateNotMet, LissomError

HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "datasets", "sklearn", "pydantic", "numpy", "rich", "yaml")


def python(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, timeout=60, **kwargs
    )


def lissom(*arguments, **kwargs):
    return python("-c", "from lissom.cli import main; main()", *arguments, **kwargs)


@pytest.fixture
def failing(monkeypatch):
    """A verb that raises what it is given."""

    def install(error, document=None):
        @verb("demo")
        def command(say):
            sys.stdout.write("a library prints")
            if document:
                say.result(document, "text")
            raise error

        get = groups._Verbs.get_command
        monkeypatch.setattr(
            groups._Verbs, "get_command", lambda self, ctx, name: command if name == "demo" else get(self, ctx, name)
        )

    return install


def test_help_imports_nothing_heavy():
    code = f"import sys, lissom.cli\nlissom.cli.run(['--help'])\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Usage: lissom" in done.stdout


def test_help_names_every_verb(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_ends_with_examples(name, capsys):
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    examples = text.partition("\nExamples:\n")[2].strip().splitlines()
    assert 1 <= len(examples) <= 3
    assert all("lissom " + name in line for line in examples)
    assert "--json" in text


@pytest.mark.parametrize("name", VERBS)
def test_examples_parse(name):
    command = group.get_command(None, name)
    for line in command.examples:
        words = line.partition("lissom ")[2].partition(" > ")[0].replace('"', "").split()[1:]
        command.make_context(name, words, obj=Output())


def test_no_arguments_is_help(capsys):
    assert run([]) == 2
    assert "Usage: lissom" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mesure"], 'error LSM-207 unknown command "mesure". Did you mean "measure"?'),
        (["recipes", "--redy"], 'error LSM-207 unknown option "--redy". Did you mean "--ready"?'),
        (["compress", "m", "--recpie", "demo"], 'error LSM-207 unknown option "--recpie". Did you mean "--recipe"?'),
        (["recipes", "a", "b"], "error LSM-208 got unexpected extra argument (b). `lissom recipes --help` shows"),
        (["predict", "m"], "error LSM-208 missing option '--input'. `lissom predict --help` shows examples."),
        (["measure", "m", "--seed", "x"], "error LSM-208 invalid value for '--seed': 'x' is not a valid integer"),
        (["measure", "m", "--seed", "-1"], "error LSM-208 invalid value for '--seed': -1 is not in the range"),
    ],
)
def test_usage_errors(arguments, message, capsys):
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(message)
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert run([*arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"code", "place", "message", "remedy", "exit"}
    assert document["exit"] == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            LissomError(312, "unknown key", place="r.yaml:7", remedy="Fix it."),
            3,
            "error LSM-312 r.yaml:7: unknown key. Fix it.",
        ),
        (LissomError(401, "a pickle", place="a.bin"), 4, "error LSM-401 a.bin: a pickle."),
        (LissomError(801, "no rows"), 4, "error LSM-801 no rows."),
        (LissomError(901, "NaN"), 1, "error LSM-901 NaN."),
        (GateNotMet(501, "keep is 0.9"), 5, "error LSM-501 keep is 0.9."),
        (MemoryError(), 6, "error LSM-601 out of memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 6, "error LSM-601 out of memory."),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 6, "error LSM-602 x: the disk is full."),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            6,
            "error LSM-603 x: not allowed: Permission denied.",
        ),
        (KeyboardInterrupt(), 130, "error LSM-609 stopped by Ctrl-C."),
        (ZeroDivisionError("division by zero"), 1, "error LSM-919 unexpected ZeroDivisionError: division by zero."),
        (ValueError("\x1b[31mred\nline"), 1, "error LSM-919 unexpected ValueError: \ufffd[31mred line."),
    ],
)
def test_failures_are_one_line_and_one_document(failing, capsys, error, code, line):
    failing(error)
    assert run(["demo"]) == code
    streams = capsys.readouterr()
    assert streams.err.startswith(line)
    assert streams.err.count("\n") == 1
    assert run(["demo", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["exit"] == code
    assert document["code"] in line


def test_a_missed_gate_keeps_the_result(failing, capsys):
    failing(GateNotMet(501, "keep is 0.9"), {"rows": [1]})
    assert run(["demo", "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == [1]
    assert document["code"] == "LSM-501"


def test_debug_shows_the_traceback(failing, capsys, monkeypatch):
    failing(LissomError(801, "no rows"))
    monkeypatch.setenv("LISSOM_DEBUG", "1")
    assert run(["demo"]) == 4
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.rstrip().endswith("error LSM-801 no rows.")


def test_a_reader_that_leaves_is_no_failure():
    done = python(
        "-c",
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'from lissom.cli import main; main()', 'recipes'],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.close()\nprint(p.wait(), p.stderr.read())",
    )
    assert done.stdout.strip() == "141 b''"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_clean_up_and_say_so(number, code, tmp_path):
    program = f"""
import os, signal, sys
from lissom.cli import run
from lissom.cli import group as groups
@groups.verb("demo")
def command(say):
    try:
        os.kill(os.getpid(), {int(number)})
        signal.pause()
    finally:
        open({str(tmp_path / "cleaned")!r}, "w").close()
groups._Verbs.get_command = lambda *_: command
sys.exit(run(["demo", "--json"]))
"""
    done = python("-c", program)
    assert done.returncode == code
    assert json.loads(done.stdout)["exit"] == code
    assert "Traceback" not in done.stderr
    assert (tmp_path / "cleaned").exists()


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("lissom.cli.output.time.monotonic", lambda: now[0])
    with Output().progress("compress") as report:
        for seconds in range(25):
            now[0] = 100.0 + seconds
            report("step \x1b[2J 1", seconds / 50)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "compress:   0%  step \ufffd[2J 1"
    assert lines[2] == "compress:  40%  step \ufffd[2J 1  about 30 s left"


@pytest.mark.parametrize("kwargs", [{"json": True}, {"quiet": True}])
def test_no_progress_when_nobody_wants_it(kwargs, capsys):
    with Output(**kwargs).progress("compress") as report:
        report("x", 0.5)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_shows_foreign_text_as_text(monkeypatch):
    pty = pytest.importorskip("pty")
    program = (
        "import time\nfrom lissom.cli.output import Output\n"
        "with Output().progress('compress') as report:\n    report('[red]a[/red]\\x1b[2J', 0.5); time.sleep(0.2)\n"
    )
    main, child = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stderr=child, stdout=child, check=True, timeout=60)
    os.close(child)
    shown = os.read(main, 1 << 16).decode()
    assert "[red]a[/red]" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("elapsed", "fraction", "text"),
    [
        (10, 0, ""),
        (1, 0.5, ""),
        (10, 0.5, "about 10 s left"),
        (100, 0.4, "about 2 min 30 s left"),
        (3600, 0.25, "about 3 h 0 min left"),
    ],
)
def test_time_left(elapsed, fraction, text):
    assert left(elapsed, fraction) == text


def test_tables_align_and_steer_nothing(capsys):
    Output().table(["name", "n"], [["a\x1b[31m", "1"], ["bcd", "1,000"]])
    assert capsys.readouterr().out == "name        n\n------  -----\na\ufffd[31m      1\nbcd     1,000\n"


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "lissom 0.1.0\n"


def test_recipes_lists_every_system(capsys):
    assert run(["recipes", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["recipes"]
    assert len(entries) > 327
    assert all({"id", "name", "family", "kind", "status", "reason"} <= set(entry) for entry in entries)
    assert run(["recipes", "--ready", "-q"]) == 0
    assert "demo" in capsys.readouterr().out.splitlines()


def test_an_unknown_recipe_is_exit_3(capsys):
    assert run(["recipes", "dmo"]) == 3
    assert capsys.readouterr().err == 'error LSM-301 no recipe is called "dmo". Did you mean "demo"?\n'


def test_what_the_encoding_lacks_is_escaped():
    code = "from lissom.cli.output import Output\nout = Output()\nout.print('\u2191 fine')\nout.finish()"
    done = python("-c", code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout.strip()) == (0, r"\u2191 fine")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize(
    ("ending", "code", "line"),
    [
        ("recipes --ready >&-", 0, ""),
        ("recipes --ready 2>&-", 0, ""),
        ("recipes --json 2>&-", 0, ""),
        ("recipes --ready > /dev/full", 6, "LSM-602"),
        ("recipes --json > /dev/full", 6, "LSM-602"),
        ("predict nothing --input - <&-", 4, "LSM-831"),
    ],
)
def test_closed_and_full_streams(ending, code, line):
    if "/dev/full" in ending and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = f"'{sys.executable}' -c 'from lissom.cli import main; main()' {ending}"
    done = subprocess.run(["/bin/sh", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert "planned" not in done.stdout.partition("id")[0]


def test_a_full_disk_that_safetensors_reports(failing, capsys):
    kind = type("SafetensorError", (Exception,), {})
    failing(kind("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert run(["demo"]) == 6
    assert "LSM-602" in capsys.readouterr().err


def test_ready_recipes_are_not_counted_against_planned_ones(capsys):
    assert run(["recipes", "--ready"]) == 0
    assert "0 planned" not in capsys.readouterr().err
