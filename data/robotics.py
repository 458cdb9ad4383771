"""Titles and abstracts of arXiv's papers on robotics, or on what else it has a category for."""

import html
import os
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import requests

from common import download
from common.errors import UserError
from data import Corpus

ABOUT = "5 to 20 MB: titles and abstracts of robotics papers (--category, --max_results); technical prose in short documents"
URL = "https://export.arxiv.org/api/query"
PAGE = 1000  # papers; arXiv gives 2,000 at most
MOST = 30_000  # papers that arXiv gives of one query
PAUSE = 3.0  # seconds before each request, as arXiv asks for; doubled with each retry, or as long as an answer says
TRIES = 4
TIMEOUT = (10, 60)  # seconds: to connect, and without a byte
NAMES = {"atom": "http://www.w3.org/2005/Atom", "search": "http://a9.com/-/spec/opensearch/1.1/"}


class Page(NamedTuple):
    papers: dict[str, str]  # by their ids
    total: int | None = None  # papers on all pages; None where what arrived is no page of arXiv's
    count: int = 0  # entries on this one
    error: str = ""  # what arXiv says instead of giving papers


def load(folder: Path, *, category: str = "cs.RO", max_results: int = 5000) -> Corpus:
    """Each paper is a document. What arXiv answered is kept under folder, page by page. Raises UserError."""
    if not re.fullmatch(r"[a-z-]+(\.[A-Za-z-]+)?", category):
        raise UserError(f"{category!r} is not a category of arXiv, as cs.RO is", status=2)
    if not 0 < max_results <= MOST:
        raise UserError(
            f"max_results must lie between 1 and {MOST:,}, the most arXiv gives; it is {max_results:,}",
            2,
        )
    papers = {}
    start, total = 0, MOST
    while start < min(total, MOST) and len(papers) < max_results:
        path = Path(folder, f"arxiv-{category}", f"{start}.xml")
        if not path.exists():
            _crawl(category, start, path)
        page = _parse(path.read_bytes())
        if not page.count:
            raise UserError(
                f"{path} holds no papers: remove it, or save {_url(category, start)} there by hand"
            )
        papers |= page.papers
        start, total = start + page.count, page.total
        print(
            f"arXiv {category}: {min(len(papers), max_results):,} of {min(total, max_results):,} papers"
        )
    documents = list(papers.values())[:max_results]
    return Corpus(
        f"arXiv {category}, {len(documents):,} titles and abstracts, {URL}", lambda: documents
    )


def _url(category: str, start: int) -> str:
    """The address of a page, whose first paper is number `start`, from 0."""
    # The oldest first: new papers don't shift the pages, and a longer crawl goes on from a shorter one.
    query = {"search_query": f"cat:{category}", "sortBy": "submittedDate", "sortOrder": "ascending"}
    return f"{URL}?{urlencode(query | {'start': start, 'max_results': PAGE}, safe=':')}"


def _crawl(category: str, start: int, path: Path) -> None:
    """Saves a page of papers; arXiv now and then asks to wait, or answers with an empty one. Raises UserError."""
    url = _url(category, start)
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = 0.0  # seconds that arXiv wants us to wait
    for attempt in range(TRIES):
        time.sleep(max(PAUSE * 2**attempt, asked))
        try:
            response = requests.get(url, timeout=TIMEOUT, headers={"User-Agent": "prepare.py"})
            page = _parse(response.content)
            if page.error and response.status_code in (200, 400):
                raise UserError(
                    f"arXiv refuses {url} ({page.error}): check --category, or try again later"
                )
            asked = download.retry_after(response)
            response.raise_for_status()
            if start == 0 and page.total == 0:
                raise UserError(
                    f"arXiv has no papers in the category {category}: choose one of https://arxiv.org/category_taxonomy"
                )
            if page.count:
                new = path.with_suffix(".part")
                new.write_bytes(response.content)
                os.replace(new, path)
                return
            problem = "an empty page, as if there were no more"
        except requests.RequestException as error:
            problem = download.reason(error)
        print(f"arXiv, try {attempt + 1} of {TRIES}: {problem}")
    raise UserError(
        f"can't get papers from arXiv ({problem}): run this again later, and it goes on from here; or open {url} in a "
        f"browser and save it as {path}"
    )


def _parse(xml: bytes) -> Page:
    """Reads a page; one that is no feed of arXiv's, or says an error, has no papers."""
    try:
        feed = ET.fromstring(xml)
    except ET.ParseError:
        return Page({})
    entries = feed.findall("atom:entry", NAMES)
    papers = {}
    for entry in entries:
        name, title, abstract = (
            _plain(entry.findtext(f"atom:{tag}", "", NAMES)) for tag in ("id", "title", "summary")
        )
        if "/api/errors" in name:
            return Page({}, error=abstract or title)
        papers[re.sub(r"v\d+$", "", name)] = f"{title}\n\n{abstract}\n"
    total = feed.findtext("search:totalResults", "", NAMES)
    return Page(papers, int(total), len(entries)) if total.isdecimal() else Page({})


def _plain(text: str) -> str:
    """Without line breaks, and without the entities that authors sent in and XML's own escapes now hide."""
    return " ".join(html.unescape(text).split())
