import hashlib
import os
import platform
import re
import sysconfig
import zipfile
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest
from server import reply, serve

from common import download, files
from common.errors import UserError
from data import END, Corpus, python, robotics, wikipedia
from prepare import prepare


def texts(corpus: Corpus) -> list[str]:
    """The documents of a corpus that yields each in one piece; the same in a second pass."""
    stream = list(corpus.text())
    assert list(corpus.text()) == stream
    assert stream[1::2] == [END] * (len(stream) // 2)
    return stream[::2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(robotics, "PAUSE", 0.001)
    monkeypatch.setattr(robotics, "PAGE", 3)


# python


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Writes the files of a standard library."""

    def write(**files: bytes):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_py", ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return write


def test_python_is_the_sorted_source_files_without_tests(library, tmp_path):
    library(
        zip_py=b"last",
        a__b_py="é".encode(),
        a__c_txt=b"no source",
        abc_py=b"# abc",
        test__a_py=b"a test",
    )
    library(
        a__tests__d_py=b"a test", idlelib__idle_test__e_py=b"a test", latin_py=b"\xe9", empty_py=b""
    )
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "numpy.py").write_text("not the standard library")
    corpus = python.load(tmp_path)
    assert [text for text in texts(corpus) if text] == ["é", "# abc", "last"]
    assert platform.python_version() in corpus.source


def test_python_adds_source_trees(library, tmp_path, monkeypatch, capsys):
    library(
        lib__abc_py=b"# abc",
        own__b_py=b"# b",
        own__a__c_py=b"# c",
        own__latin_py=b"\xe9",
        own__d_txt=b"d",
    )
    library(more__e_txt=b"# e", alone_py=b"# alone")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    own, more, alone = (str(tmp_path / name) for name in ("own", "more", "alone.py"))
    corpus = python.load(tmp_path, inputs=[own, alone])
    assert texts(corpus) == ["# c", "# b", "# alone", "# abc"]  # a --limit takes those first
    assert "standard library" in corpus.source
    assert own in corpus.source
    assert "own/latin.py" in capsys.readouterr().out
    assert texts(python.load(tmp_path, inputs=[more], pattern="*_txt")) == ["# e", "# abc"]
    with pytest.raises(UserError, match=r"no \*\.py in"):
        python.load(tmp_path, inputs=[more])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a file or folder"):
        python.load(tmp_path, inputs=[str(tmp_path / "pipe")])


def test_a_python_without_source_files_is_refused(library, tmp_path):
    with pytest.raises(UserError, match="no source files"):
        python.load(tmp_path)


def test_python_finds_the_library_of_this_interpreter(tmp_path):
    found = texts(python.load(tmp_path))
    assert len(found) > 400
    assert not any("class TestCaseTest" in text for text in found)


# wikipedia


PAGES = [
    f"<page>\n    <title>{title}</title>\n    é &quot;text&quot;\n  </page>"
    for title in ("Anarchism", "Ada", "Aardvark")
]
ENWIK = (
    "<mediawiki>\n  <siteinfo>\n  </siteinfo>\n  "
    + "\n  ".join(PAGES)
    + "\n  <page>\n    <title>Cut off"
)


@pytest.fixture
def enwik(tmp_path, monkeypatch):
    """A small enwik8.zip in the folder for downloads; a function that changes it."""

    def write(text: str) -> bytes:
        with zipfile.ZipFile(tmp_path / "enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("enwik8", text)
        content = (tmp_path / "enwik8.zip").read_bytes()
        monkeypatch.setattr(wikipedia, "SHA256", hashlib.sha256(content).hexdigest())
        return content

    write(ENWIK)
    return write


def test_all_of_wikipedia_is_split_by_bytes_between_characters(enwik, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 3)
    monkeypatch.setattr(wikipedia, "TRAIN_END", 90)
    monkeypatch.setattr(wikipedia, "VALIDATION_END", 95)
    enwik("a" * 89 + "ébc" + "é" * 4)
    corpus = wikipedia.load(tmp_path)
    for _ in range(2):
        assert "".join(corpus.text()) == "a" * 89
        assert "".join(corpus.validation()) == "bcé"


def test_val_fraction_is_refused_for_a_corpus_with_its_own_validation_text(monkeypatch):
    monkeypatch.setattr(wikipedia, "load", lambda folder: Corpus("", list, validation=list))
    with pytest.raises(UserError, match="wikipedia comes with its own validation text"):
        prepare("wikipedia_byte", val_fraction=0.2)


def test_wikipedia_with_a_limit_is_whole_articles(enwik, tmp_path):
    size = len(ENWIK.encode())
    for limit, pages in {size: 3, 10 * size: 3, size - 40: 2, 150: 1}.items():
        corpus = wikipedia.load(tmp_path, limit=limit)
        assert texts(corpus) == PAGES[:pages]
        assert corpus.validation is None
    with pytest.raises(UserError, match="--limit 50"):
        wikipedia.load(tmp_path, limit=50)


def test_wikipedia_is_downloaded_and_checked(enwik, tmp_path, monkeypatch):
    content = enwik(ENWIK)
    (tmp_path / "enwik8.zip").unlink()
    with serve(lambda request: reply(request, content)) as address:
        monkeypatch.setattr(wikipedia, "URL", address)
        assert texts(wikipedia.load(tmp_path, limit=1000)) == PAGES
    (tmp_path / "enwik8.zip").write_bytes(b"another file")
    with pytest.raises(UserError, match="sha256"):
        wikipedia.load(tmp_path)


# robotics


def feed(start: int, stop: int, total: int) -> bytes:
    """A page as arXiv answers it, with the papers start to stop."""
    entries = "".join(
        f"<entry><id>http://arxiv.org/abs/2401.{i:05}v{1 + i % 3}</id><title>Paper\n  {i}</title>"
        f"<summary>  It &lt;walks&gt;\n on {i} legs.\n</summary></entry>"
        for i in range(start, min(stop, total))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><feed xmlns="http://www.w3.org/2005/Atom" '
        f'xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"><opensearch:totalResults>{total}'
        f"</opensearch:totalResults>{entries}</feed>"
    ).encode()


def document(i: int) -> str:
    return f"Paper {i}\n\nIt <walks> on {i} legs.\n"


@contextmanager
def arxiv(monkeypatch, total=100, answer=None):
    """An arXiv on this machine.

    answer(n, start) may return another page for the n-th request, or a page, status and headers.

    Yields the requests.
    """
    asked = []

    def handle(request):
        query = parse_qs(urlsplit(request.path).query)
        start = int(query["start"][0])
        asked.append(start)
        assert query["search_query"] == ["cat:cs.RO"]
        page = answer(len(asked), start) if answer else None
        page = feed(start, start + int(query["max_results"][0]), total) if page is None else page
        page, status, headers = page if isinstance(page, tuple) else (page, 200, {})
        reply(request, page, status, **headers)

    with serve(handle) as address:
        monkeypatch.setattr(robotics, "URL", address)
        yield asked


def test_robotics_requests_each_page_once(tmp_path, monkeypatch):
    with arxiv(monkeypatch) as asked:
        corpus = robotics.load(tmp_path, max_results=7)
        assert asked == [0, 3, 6]
        robotics.load(tmp_path, max_results=4)
        robotics.load(tmp_path, max_results=11)
        assert asked == [0, 3, 6, 9]
    assert texts(corpus) == [document(i) for i in range(7)]


def test_robotics_with_fewer_papers_than_requested(tmp_path, monkeypatch):
    with arxiv(monkeypatch, total=4) as asked:
        assert len(texts(robotics.load(tmp_path))) == 4
    assert asked == [0, 3]


def test_robotics_a_short_page_leaves_no_gap(tmp_path, monkeypatch):
    with arxiv(monkeypatch, answer=lambda n, start: feed(0, 2, 100) if n == 1 else None) as asked:
        corpus = robotics.load(tmp_path, max_results=5)
    assert asked == [0, 2]
    assert texts(corpus) == [document(i) for i in range(5)]


def test_robotics_retries_empty_and_broken_pages(tmp_path, monkeypatch):
    bad = {2: feed(0, 0, 0), 3: b"", 4: b"<feed><entry>"}
    with arxiv(monkeypatch, answer=lambda n, start: bad.get(n)) as asked:
        corpus = robotics.load(tmp_path, max_results=6)
    assert asked == [0, 3, 3, 3, 3]
    assert texts(corpus) == [document(i) for i in range(6)]


@pytest.mark.parametrize("status", [429, 503])
def test_robotics_waits_as_long_as_arxiv_asks_up_to_a_limit(tmp_path, monkeypatch, status):
    pauses = []
    monkeypatch.setattr(robotics.time, "sleep", pauses.append)
    monkeypatch.setattr(robotics, "PAUSE", 3.0)
    page = feed(0, 1, 1).replace(b"abs/", b"api/errors#")
    busy = {
        n: (page, status, {"Retry_After": asked})
        for n, asked in enumerate(["20", "3600", "soon"], 1)
    }
    with arxiv(monkeypatch, answer=lambda n, start: busy.get(n)):
        robotics.load(tmp_path, max_results=4)
    assert pauses == [
        3,
        20,
        download.LONGEST_PAUSE,
        24,
        3,
    ]  # "soon" is not a time


def test_robotics_does_not_retry_a_category_without_papers(tmp_path, monkeypatch):
    with (
        arxiv(monkeypatch, total=0) as asked,
        pytest.raises(UserError, match="no papers in the category cs.RO"),
    ):
        robotics.load(tmp_path)
    assert asked == [0] and not list(tmp_path.rglob("*.xml"))


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("total", [b"", b"<opensearch:totalResults>1</opensearch:totalResults>"])
def test_robotics_quotes_arxivs_errors(tmp_path, monkeypatch, status, total):
    page = feed(0, 1, 1).replace(b"abs/2401.00000v1", b"api/errors#malformed_query")
    page = page.replace(b"<opensearch:totalResults>1</opensearch:totalResults>", total)
    with (
        arxiv(monkeypatch, answer=lambda n, start: (page, status, {})) as asked,
        pytest.raises(UserError) as error,
    ):
        robotics.load(tmp_path)
    assert asked == [0] and not list(tmp_path.rglob("*.xml"))
    assert "It <walks> on 0 legs." in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "arxiv-cs.RO" / "0.xml").write_bytes(page)
    with pytest.raises(UserError, match="0.xml has no papers"):
        robotics.load(tmp_path)


def test_robotics_counts_versions_of_a_paper_once(tmp_path, monkeypatch):
    again = feed(1, 4, 100).replace(b"00002v3", b"00002v9")
    with arxiv(monkeypatch, answer=lambda n, start: again if start == 3 else None):
        corpus = robotics.load(tmp_path, max_results=6)
    assert texts(corpus) == [document(i) for i in (0, 1, 2, 3, 6, 7)]


def test_robotics_decodes_entities_and_joins_lines(tmp_path, monkeypatch):
    page = feed(0, 1, 1).replace(
        b"It &lt;walks&gt;", escape("Sch&ouml;n &amp; r&#233;el: $a < b$,").encode()
    )
    with arxiv(monkeypatch, answer=lambda n, start: page.replace(b"Paper", "Pà per".encode())):
        (text,) = texts(robotics.load(tmp_path))
    assert text == "Pà per 0\n\nSchön & réel: $a < b$, on 0 legs.\n"


def test_robotics_continues_an_interrupted_crawl(tmp_path, monkeypatch):
    with (
        arxiv(monkeypatch, answer=lambda n, start: b"" if start else None) as asked,
        pytest.raises(UserError) as error,
    ):
        robotics.load(tmp_path, max_results=6)
    assert asked == [0] + [3] * robotics.TRIES
    assert str(tmp_path / "arxiv-cs.RO" / "3.xml") in str(error.value)
    assert "an empty page" in str(error.value)
    assert "\n" not in str(error.value)
    with arxiv(monkeypatch) as asked:
        assert texts(robotics.load(tmp_path, max_results=6)) == [document(i) for i in range(6)]
    assert asked == [3]


def test_robotics_uses_pages_saved_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(robotics, "URL", "http://127.0.0.1:9/query")
    with pytest.raises(UserError, match="no connection"):
        robotics.load(tmp_path, max_results=2)
    page = tmp_path / "arxiv-cs.RO" / "0.xml"
    page.write_bytes(feed(0, 3, 3))
    assert len(texts(robotics.load(tmp_path, max_results=2))) == 2
    page.write_text("<html>try later</html>")
    with pytest.raises(UserError, match="0.xml has no papers"):
        robotics.load(tmp_path, max_results=2)


@pytest.mark.parametrize(
    "options", [{"max_results": 30_001}, {"max_results": 0}, {"category": "../robots"}]
)
def test_robotics_refuses_invalid_options(tmp_path, options):
    with pytest.raises(UserError) as error:
        robotics.load(tmp_path, **options)
    assert error.value.status == 2


NAMESPACES = (
    'xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" '
    'xmlns:arxiv="http://arxiv.org/schemas/atom" xmlns="http://www.w3.org/2005/Atom"'
)
UNTIL_2025 = f"""<?xml version="1.0" encoding="UTF-8"?>
<feed {NAMESPACES}>
  <link href="http://arxiv.org/api/query?x" rel="self" type="application/atom+xml"/>
  <title type="html">ArXiv Query: search_query=cat:cs.RO</title>
  <id>http://arxiv.org/api/abc</id>
  <opensearch:totalResults {NAMESPACES}>1314</opensearch:totalResults>
  <entry>
    <id>http://arxiv.org/abs/cs/0601001v12</id>
    <updated>2006-01-01T00:00:00Z</updated>
    <title>A Title on
  Two Lines</title>
    <summary>  A summary with hard
line ends, $\\alpha$ &amp; G\\"odel.
</summary>
    <author><name>A. Name</name><arxiv:affiliation>A Lab</arxiv:affiliation></author>
  </entry>
</feed>"""
SINCE_2026 = f"""<?xml version='1.0' encoding='UTF-8'?>
<feed {NAMESPACES}>
  <id>https://arxiv.org/api/abc</id>
  <title>arXiv Query: search_query=cat:cs.RO&amp;id_list=</title>
  <opensearch:itemsPerPage>1</opensearch:itemsPerPage>
  <opensearch:totalResults>58344</opensearch:totalResults>
  <opensearch:startIndex>0</opensearch:startIndex>
  <entry>
    <id>https://arxiv.org/abs/2104.12255v1</id>
    <title>0</title>
    <link href="https://arxiv.org/abs/2104.12255v1" rel="alternate" type="text/html"/>
    <link href="https://arxiv.org/pdf/2104.12255v1" title="pdf"/>
    <summary>On 0 in &lt;i&gt;cryptography&lt;/i&gt;.</summary>
    <category term="cs.CR" scheme="http://arxiv.org/schemas/atom"/>
    <author><name>A. Name</name></author>
  </entry>
</feed>"""
EMPTY = re.sub("<entry>.*</entry>", "", SINCE_2026, flags=re.DOTALL).replace("58344", "0")
OAI_PMH = """<?xml version="1.0" encoding="UTF-8"?>
<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords><record><metadata>
<arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>1</id><title>A</title><abstract>B</abstract></arXiv>
</metadata></record></ListRecords></OAI-PMH>"""


@pytest.mark.parametrize(
    "page, papers, total",
    [
        (
            UNTIL_2025,
            {
                "arxiv.org/abs/cs/0601001": "A Title on Two Lines\n\n"
                'A summary with hard line ends, $\\alpha$ & G\\"odel.\n'
            },
            1314,
        ),
        (SINCE_2026, {"arxiv.org/abs/2104.12255": "0\n\nOn 0 in <i>cryptography</i>.\n"}, 58344),
        (EMPTY, {}, 0),
        (OAI_PMH, {}, None),
    ],
    ids=["until 2025", "since 2026", "empty", "OAI-PMH"],
)
def test_robotics_reads_every_format_of_arxiv(page, papers, total):
    found = robotics.parse(page.encode())
    assert found.papers == papers
    assert found.total == total
    assert found.count == len(papers)


def test_robotics_knows_a_paper_by_its_id_in_both_formats():
    old = robotics.parse(
        SINCE_2026.replace("https://arxiv.org/abs", "http://arxiv.org/abs").encode()
    )
    assert old.papers.keys() == robotics.parse(SINCE_2026.encode()).papers.keys()
