"""Downloads pip's wheel from the package index, for a python3 without pip: fetch_pip.py FILE

The index is PIP_INDEX_URL, as for pip itself. The wheel runs without installation: `python3 FILE/pip install …`.
"""

import hashlib
import html
import os
import re
import sys
import urllib.parse
import urllib.request

WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def main(file: str) -> None:
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    page = fetch(index).decode()
    links = [html.unescape(link) for link in re.findall(r'href="([^"]*)"', page)]
    link = next((link for link in links if f"/{WHEEL}" in f"/{link}"), None)
    if link is None:
        sys.exit(f"{index} has no {WHEEL}")
    wheel = fetch(urllib.parse.urljoin(index, link))
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        sys.exit(f"{WHEEL} does not have the expected hash: {link}")
    with open(file, "wb") as out:
        out.write(wheel)


if __name__ == "__main__":
    main(sys.argv[1])
