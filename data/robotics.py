"""Titles and abstracts of arXiv's papers on robotics, or on what else it has a category for."""

import html
import os
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import urlencode

import requests

from cli import UserError
from data import Corpus, download

ABOUT = "5 to 20 MB: titles and abstracts of robotics papers (--category, --max_results); technical prose in short documents"
URL = "https://export.arxiv.org/api/query"
PAGE = 1000  # papers; arXiv gives 2,000 at most
MOST = 30_000  # papers that arXiv gives of one query
PAUSE = 3.0  # seconds before each request, as arXiv asks for; doubled with each retry
TRIES = 4
TIMEOUT = (10, 60)  # seconds: to connect, and without a byte
NAMES = {"atom": "http://www.w3.org/2005/Atom", "search": "http://a9.com/-/spec/opensearch/1.1/"}


def load(folder: Path, *, category: str = "cs.RO", max_results: int = 5000) -> Corpus:
    """Each paper is a document. What arXiv answered is kept under folder, page by page. Raises UserError."""
    if not re.fullmatch(r"[a-z-]+(\.[A-Za-z-]+)?", category):
        raise UserError(f"{category!r} is not a category of arXiv, as cs.RO is", status=2)
    if not 0 < max_results <= MOST:
        raise UserError(f"max_results must lie between 1 and {MOST:,}, the most arXiv gives; it is {max_results:,}", 2)
    papers = {}
    start, total = 0, MOST
    while start < min(total, MOST) and len(papers) < max_results:
        # The oldest first: new papers don't shift the pages, and a longer crawl goes on from a shorter one.
        query = {"search_query": f"cat:{category}", "sortBy": "submittedDate", "sortOrder": "ascending"}
        url = f"{URL}?{urlencode(query | {'start': start, 'max_results': PAGE}, safe=':')}"
        path = Path(folder, f"arxiv-{category}", f"{start}.xml")
        if not path.exists():
            _crawl(url, path)
        page, total, count = _parse(path.read_bytes())
        if not count:
            raise UserError(f"{path} holds no papers: remove it, or save {url} there by hand")
        papers |= page
        start += count
        print(f"arXiv {category}: {min(len(papers), max_results):,} of {min(total, max_results):,} papers")
    documents = list(papers.values())[:max_results]
    return Corpus(f"arXiv {category}, {len(documents):,} titles and abstracts, {URL}", lambda: documents)


def _crawl(url: str, path: Path) -> None:
    """Saves a page of papers; arXiv now and then answers with an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = 0  # seconds, by the server
    for attempt in range(TRIES):
        time.sleep(max(PAUSE * 2**attempt, min(asked, download.LONGEST_PAUSE)))
        try:
            response = requests.get(url, timeout=TIMEOUT, headers={"User-Agent": "prepare.py"})
            if b"/api/errors" in response.content:
                words = " ".join(_parse(response.content)[0].values()).split()
                raise UserError(f"arXiv refuses: {' '.join(words)}")
            retry_after = response.headers.get("Retry-After", "")
            asked = int(retry_after) if retry_after.isdigit() else 0
            response.raise_for_status()
            if _parse(response.content)[2]:
                new = path.with_suffix(".part")
                new.write_bytes(response.content)
                os.replace(new, path)
                return
            problem = "an empty page, as if it had no such category or no more papers"
        except requests.RequestException as error:
            problem = download.reason(error)
        print(f"arXiv, try {attempt + 1} of {TRIES}: {problem}")
    raise UserError(
        f"can't get papers from arXiv ({problem}): run this again later, and it goes on from here; or open {url} in a "
        f"browser and save it as {path}"
    )


def _parse(xml: bytes) -> tuple[dict[str, str], int, int]:
    """The papers of a page by their ids, how many there are in all pages, and how many entries are on this one."""
    try:
        feed = ET.fromstring(xml)
    except ET.ParseError:
        return {}, 0, 0
    entries = feed.findall("atom:entry", NAMES)
    papers = {}
    for entry in entries:
        name, title, abstract = (_plain(entry.findtext(f"atom:{tag}", "", NAMES)) for tag in ("id", "title", "summary"))
        papers[re.sub(r"v\d+$", "", name)] = f"{title}\n\n{abstract}\n"
    return papers, int(feed.findtext("search:totalResults", "0", NAMES)), len(entries)


def _plain(text: str) -> str:
    """Without line breaks, and without the entities that authors sent in and XML's own escapes now hide."""
    return " ".join(html.unescape(text).split())
