#!/usr/bin/env python3
"""Whether every link within a built site leads somewhere: the file is there, and so is the anchor. Links elsewhere are not fetched.

    docs/site/check_site.py SITE

Also: no page loads a script, style or picture from elsewhere, and no Markdown is left in the text of a page.
Exit codes: 0 they do; 1 some do not: a line for each page and link.
"""

import os
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

MARKDOWN = re.compile(r"\]\([^)\s]+\)|^\s*```|\{#[\w-]+\}", re.M)
LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids, self.text = [], [], set(), []
        self.verbatim = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.update(values[name] for name in ("id", "name") if values.get(name))
        if tag == "a" and values.get("href") is not None:
            self.links.append(values["href"])
        elif tag == "link" and values.get("href") and values.get("rel") not in ("canonical", "alternate"):
            self.loads.append(values["href"])
        elif values.get(LOADS.get(tag)):
            self.loads.append(values[LOADS[tag]])
        self.verbatim += tag in ("pre", "code", "script", "style")

    def handle_endtag(self, tag):
        self.verbatim -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data):
        if not self.verbatim:
            self.text.append(data)


def pages_of(site):
    found = {}
    for folder, _, names in os.walk(site):
        for name in sorted(names):
            if name.endswith(".html"):
                path = os.path.join(folder, name)
                with open(path, encoding="utf-8") as file:
                    found[os.path.relpath(path, site)] = Page(file.read())
    return found


def check(site):
    pages, wrong, links = pages_of(site), [], 0
    for path, page in sorted(pages.items()):
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data":
                    wrong.append(f"{path}: loads {link} from elsewhere")
                continue
            links += 1
            # 404.html is served for any address: its links begin at the root
            base = "" if parts.path.startswith("/") else os.path.dirname(path)
            target = os.path.normpath(os.path.join(base, unquote(parts.path).lstrip("/"))) if parts.path else path
            if os.path.isdir(os.path.join(site, target)):
                target = os.path.normpath(os.path.join(target, "index.html"))
            if target.startswith("..") or not os.path.isfile(os.path.join(site, target)):
                wrong.append(f"{path}: {link}: there is no {target}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                wrong.append(f"{path}: {link}: {target} has no anchor `{unquote(parts.fragment)}`")
        # source pages and others in turn: text outside of code only
        left = MARKDOWN.search("".join(page.text))
        if left:
            wrong.append(f"{path}: Markdown is left in the text: `{left[0].strip()}`")
    return pages, links, wrong


def main():
    site = sys.argv[1]
    pages, links, wrong = check(site)
    if not pages:
        sys.exit(f"docs: found no page in {site}")
    if wrong:
        sys.exit("\n".join(wrong) + f"\ndocs: {len(wrong)} dead links or other faults in {len(pages)} pages")
    print(f"{len(pages)} pages, {links} links within them")


if __name__ == "__main__":
    main()
