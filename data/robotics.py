"""Titles and abstracts of arXiv's papers of one category, by default robotics."""

import html
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import requests

from common import download
from common.errors import UserError
from common.files import write_bytes
from data import Corpus, documents

ABOUT = (
    "titles and abstracts of robotics papers, 1.4 KB each (--category, --max_results);"
    " technical prose in short documents"
)
URL = "https://export.arxiv.org/api/query"
PAGE = 1000  # papers in one request; arXiv allows 2,000
MOST = 30_000  # papers that arXiv returns for one query
PAUSE = 3.0  # seconds before each request, as arXiv asks; doubles with each retry
TRIES = 4
TIMEOUT = (10, 60)  # seconds to connect, and without receiving a byte
NAMESPACES = {
    "atom": "http://www.w3.org/2005/Atom",
    "search": "http://a9.com/-/spec/opensearch/1.1/",
}


class Page(NamedTuple):
    papers: dict[str, str]  # by id
    total: int | None = None  # papers on all pages; None if this is not a page of arXiv
    count: int = 0  # entries on this page
    error: str = ""  # arXiv's message, if it refuses the query


def load(folder: Path, *, category: str = "cs.RO", max_results: int = 5000) -> Corpus:
    """Each paper is a document. arXiv's pages are kept under folder. Raises UserError."""
    if not re.fullmatch(r"[a-z-]+(\.[A-Za-z-]+)?", category):
        raise UserError(f"{category!r} is not an arXiv category such as cs.RO", status=2)
    if not 0 < max_results <= MOST:
        raise UserError(
            f"max_results must be between 1 and {MOST:,} (arXiv's limit), not {max_results:,}",
            status=2,
        )
    papers = {}
    start, total = 0, MOST
    while start < min(total, MOST) and len(papers) < max_results:
        path = Path(folder, f"arxiv-{category}", f"{start}.xml")
        if not path.exists():
            crawl(category, start, path)
        page = parse(path.read_bytes())
        if not page.count:
            raise UserError(
                f"{path} has no papers: remove it, or save {page_url(category, start)} there"
            )
        papers |= page.papers
        start, total = start + page.count, page.total
        found, wanted = min(len(papers), max_results), min(total, max_results)
        print(f"arXiv {category}: {found:,} of {wanted:,} papers")
    texts = list(papers.values())[:max_results]
    source = f"arXiv {category}, {len(texts):,} titles and abstracts, {URL}"
    return Corpus(source, lambda: documents(texts))


def page_url(category: str, start: int) -> str:
    """The address of the page that begins with paper number `start`, counted from 0.

    The oldest papers come first: new ones don't shift the pages, and a longer crawl can reuse the
    pages of a shorter one.
    """
    query = {
        "search_query": f"cat:{category}",
        "sortBy": "submittedDate",
        "sortOrder": "ascending",
        "start": start,
        "max_results": PAGE,
    }
    return f"{URL}?{urlencode(query, safe=':')}"


def crawl(category: str, start: int, path: Path) -> None:
    """Saves a page; retries if arXiv is busy or sends an empty one. Raises UserError."""
    url = page_url(category, start)
    path.parent.mkdir(parents=True, exist_ok=True)  # also for pages saved by hand
    requested_pause = 0.0  # seconds
    for attempt in range(TRIES):
        time.sleep(max(PAUSE * 2**attempt, requested_pause))
        try:
            response = requests.get(url, timeout=TIMEOUT, headers={"User-Agent": "prepare.py"})
            page = parse(response.content)
            if page.error and response.status_code in (200, 400):
                raise UserError(
                    f"arXiv refuses {url} ({page.error}): check --category, or try again later"
                )
            requested_pause = download.retry_after(response)
            response.raise_for_status()
            if start == 0 and page.total == 0:
                raise UserError(
                    f"arXiv has no papers in the category {category}: choose one from"
                    " https://arxiv.org/category_taxonomy"
                )
            if page.count:
                write_bytes(path, response.content)
                return
            problem = "an empty page, although there are more papers"
        except requests.RequestException as error:
            problem = download.reason(error)
        print(f"arXiv, try {attempt + 1} of {TRIES}: {problem}")
    raise UserError(
        f"can't get papers from arXiv ({problem}): run this again later to continue from here, or"
        f" open {url} in a browser and save it as {path}"
    )


def parse(xml: bytes) -> Page:
    """Reads a page. Its papers are empty if it is not a page of arXiv, or an error."""
    try:
        feed = ET.fromstring(xml)
    except ET.ParseError:
        return Page({})
    entries = feed.findall("atom:entry", NAMESPACES)
    papers = {}
    for entry in entries:
        name, title, abstract = (
            plain(entry.findtext(f"atom:{tag}", "", NAMESPACES))
            for tag in ("id", "title", "summary")
        )
        if "/api/errors" in name:
            return Page({}, error=abstract or title)
        papers[re.sub(r"^https?://|v\d+$", "", name)] = f"{title}\n\n{abstract}\n"
    total = feed.findtext("search:totalResults", "", NAMESPACES)
    return Page(papers, int(total), len(entries)) if total.isdecimal() else Page({})


def plain(text: str) -> str:
    """The text without line breaks and without HTML entities, which authors sometimes submit."""
    return " ".join(html.unescape(text).split())
