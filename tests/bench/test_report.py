import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lissom.bench.charts import charts, picture
from lissom.bench.report import report
from lissom.errors import LissomError

from .samples import pair, reading, row

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

MARK = "document.title='planted'"
PAYLOADS = [
    f"<script>{MARK}</script>",
    f"</script><script>{MARK}</script>",
    f"</style><script>{MARK}</script>",
    f"</title><script>{MARK}</script>",
    f"</svg><script>{MARK}</script>",
    f"</pre><script>{MARK}</script>",
    f"</noscript><script>{MARK}</script>",
    f"--><script>{MARK}</script><!--",
    f"<!--<script>{MARK}</script>",
    f"]]><script>{MARK}</script>",
    f"<img src=x onerror={MARK}>",
    f'"><img src=x onerror={MARK}>',
    f"'><img src=x onerror={MARK}>",
    f"`><img src=x onerror={MARK}>",
    f"<svg onload={MARK}>",
    f"<svg><animate onbegin={MARK} attributeName=x dur=1s>",
    f"<math><mtext><script>{MARK}</script>",
    f"<body onload={MARK}>",
    f"<iframe srcdoc='<script>parent.{MARK}</script>'>",
    f"<iframe src=javascript:parent.{MARK}>",
    f"<details open ontoggle={MARK}>",
    f"<input autofocus onfocus={MARK}>",
    f"<video><source onerror={MARK}>",
    f"<a href=javascript:{MARK}>x</a>",
    f"<form action=javascript:{MARK}><button>x",
    f"<object data=javascript:{MARK}>",
    "<embed src=//example.invalid/x>",
    "<link rel=stylesheet href=//example.invalid/x.css>",
    "<style>@import '//example.invalid/x.css';</style>",
    "<style>*{background:url(//example.invalid/x)}</style>",
    "<meta http-equiv=refresh content='0;url=//example.invalid'>",
    "<base href=//example.invalid/>",
    f'" onmouseover="{MARK}" x="',
    f"' onmouseover='{MARK}' x='",
    "{{ 7 * 191 }}{% raw %}<b>",
    "${7*191}<b>#{7*191}",
    f"&lt;script&gt;{MARK}&lt;/script&gt;",
    f"&#60;script&#62;{MARK}&#60;/script&#62;",
    f"\\u003cscript\\u003e{MARK}<b>",
    f"\u2028<script>{MARK}</script>\u2029",
    "\u202egnp.<b>exe\x00\x1b]0;x\x07",
    "\ud800<b>lone",
]


def everywhere(text: str) -> tuple[list, dict]:
    """Rows and arguments that hold `text` wherever foreign text can stand."""
    rows = pair()
    for number, one in enumerate(rows):
        one |= {
            "subject": f"{number}{text}",
            "runtime": text[:256],
            "machine": {text: text, "cpu": [text]},
            "versions": {text: text},
            "data": {"name": text, text: text},
            "note": text,
        }
        for found in one["readings"]:
            found |= {"how": text, "unit": text[:64]}
        one["readings"].append(reading("energy_j", None, how=text))
    step = {"name": text, "options": {text: [text]}, "seconds": 1.0, "before": 2, "after": 1, "note": text}
    return rows, {
        "reference": f"0{text}",
        "title": text,
        "steps": [step],
        "gate": {"text": text, "met": False, "found": text, "floor": 0.9},
        "reproduce": [text, text],
    }


class Structure(html.parser.HTMLParser):
    """The page without its words: elements, the names of their attributes, and the values that may not vary."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list[str]]] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, sorted(name for name, _ in attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    report(pair(), file, reference="original", steps=[], title="A report")
    return file.read_text()


def test_it_is_one_small_file_that_loads_nothing(page):
    assert len(page.encode()) < 2_000_000
    outside = re.sub(r'<script type="module">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"https?://(?!www\.w3\.org/|vega\.github\.io/schema/)", outside)  # names, not addresses
    assert not re.search(r"@import|url\(|\bsrc=|srcset=|<link|<iframe|<object|<base", outside)
    assert re.findall(r'(?<![:\w])href="([^"]*)"', outside) == ["#numbers"]


def test_the_policy_allows_the_script_and_the_style_by_hash_and_nothing_else(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    script = re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]

    def source(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    allowed = f"default-src 'none'; script-src {source(script)}; style-src {source(style)}; "
    assert policy == allowed + "base-uri 'none'; form-action 'none'"
    assert page.index("Content-Security-Policy") < page.index("<style")


def test_the_order_and_the_words(page):
    verdict = "result is 4.8 times smaller and 6.1 times faster than original, and shows no difference in accuracy."
    order = [
        verdict,
        "Before and after",
        "What the quality costs",
        "How every number was taken",
        "how latency_ms_p50 was taken",
        "Where it was measured",
        "sst2",
    ]
    places = [page.index(words) for words in order]
    assert places == sorted(places)
    assert "What each step did" not in page


def test_steps_gate_and_commands_are_shown(tmp_path):
    step = {"name": "svd", "options": {"ratio": 0.5, "by": "norm"}, "seconds": 3.21, "before": 2000, "after": 1000}
    report(
        pair(),
        tmp_path / "report.html",
        reference="original",
        steps=[step],
        gate={"text": "keep >= 0.98", "met": False, "found": "0.97"},
        reproduce=["lissom demo", "lissom check out"],
    )
    text = (tmp_path / "report.html").read_text()
    assert "✗ Gate not met</strong> keep &gt;= 0.98: 0.97" in text
    assert "ratio: 0.5, by: norm" in text
    assert "<td>2,000</td><td>1,000</td><td>3.2</td>" in text
    assert "lissom demo\nlissom check out</pre>" in text


def test_the_same_input_gives_the_same_bytes(tmp_path, page):
    report(pair(), tmp_path / "again.html", reference="original", steps=[], title="A report")
    assert (tmp_path / "again.html").read_text() == page


def test_without_quality_there_is_no_chart_and_no_script(tmp_path):
    report([row(readings=[reading("size_mb", 3, unit="MB", better="lower")])], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "script-src &#39;none&#39;" in text
    assert "<figure" not in text
    assert "original: 3 MB." in text


def test_rows_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(LissomError, match=r"LSM-841 row 2: .subject. is missing"):
        report([row(), {}], tmp_path / "report.html")
    with pytest.raises(LissomError, match="LSM-215"):
        report(pair(), tmp_path / "report.html", reference="nobody")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def harmless(tmp_path_factory) -> Structure:
    rows, arguments = everywhere("word")
    file = tmp_path_factory.mktemp("harmless") / "report.html"
    report(rows, file, **arguments)
    return Structure(file.read_text())


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_no_payload_changes_the_page(tmp_path, harmless, payload):
    rows, arguments = everywhere(payload)
    report(rows, tmp_path / "report.html", **arguments)
    text = (tmp_path / "report.html").read_text()
    found = Structure(text)
    assert found.elements == harmless.elements
    assert "<" not in payload or payload not in text
    assert "1337" not in re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)
    assert not re.search("[\x00\x1b\u2028\u2029\u202e]", text)
    data, script = found.scripts
    assert json.loads(data)["rows"] == rows
    assert not set(data) & set("<>&")
    assert script == harmless.scripts[1]


def test_the_still_picture_escapes_text():
    rows = [row(f"{number}{payload}", which=number % 2) for number, payload in enumerate(PAYLOADS[:30])]
    for spec in charts(rows, rows[0]["subject"]).values():
        still = Structure(picture(spec))
        assert {tag for tag, _ in still.elements} <= {"svg", "g", "path", "line", "text"}
        assert not any(
            name.startswith("on") or "href" in name.split(":")[-1] for _, attrs in still.elements for name in attrs
        )


@pytest.fixture(scope="module")
def hostile_pages(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("hostile")
    files = []
    for start in range(0, len(PAYLOADS), 14):
        rows, arguments = everywhere(" ".join(PAYLOADS[start : start + 14]).replace("\x00", ""))
        files.append(folder / f"{start}.html")
        report(rows, files[-1], **(arguments | {"title": "untouched"}))
    return files


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the report in")
def test_a_browser_draws_the_charts_runs_nothing_else_and_asks_for_nothing(tmp_path, hostile_pages):
    for number, file in enumerate(hostile_pages):
        dom, log = opened(file, tmp_path / str(number))
        assert "<title>untouched</title>" in dom
        assert dom.count('class="live') == 3
        assert 'class="still"' not in dom
        assert "CONSOLE" not in log, log


def opened(file: Path, profile: Path) -> tuple[str, str]:
    """What `file` looks like to Chromium after its scripts ran, and what it logged. The network resolves no name."""
    ran = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=8000"),
            *(f"--user-data-dir={profile}", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return ran.stdout, ran.stderr
