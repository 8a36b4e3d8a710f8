#!/usr/bin/env python3
"""Lays out build-docs/src for MkDocs as the repository is laid out, so that links between documents stay as they are.

    docs/site/stage.py ROOT BUILD

Copies README, CHANGELOG, CONTRIBUTING, docs/ and bench/README.md, and what they link to: pictures and JSON as they are, sources
and headers as pages. A folder that has no README gets a list of its pages. Also makes of GitHub's Markdown what Python-Markdown
reads: lists and tables right below a paragraph. Writes BUILD/mkdocs.yml. A dead link is left for MkDocs to name.
"""

import json
import os
import re
import shutil
import sys

TOP = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
LANGUAGES = {".h": "cpp", ".cc": "cpp", ".py": "python", ".cmake": "cmake", ".sh": "sh", ".yml": "yaml", ".json": "json"}
COPIED = {".png", ".svg", ".jpg", ".gif", ".json", ".html"}
ITEM = re.compile(r"([-*+]|\d{1,3}[.)])\s+\S")
LINK = re.compile(r"(\]\()([^()\s]+)(\s+\"[^\"]*\")?(\))")
ATTRIBUTE = re.compile(r"(\b(?:src|srcset|href)=\")([^\"\s]+)()(\")")
DEFINITION = re.compile(r"^(\[[^\]]+\]:\s*)(\S+)()()$", re.M)


def paragraphs(text):
    """(text, is_code) pieces; fenced code apart from the rest."""
    pieces, piece, fence = [], [], None
    for line in text.split("\n"):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if fence is None and mark:
            pieces.append(("\n".join(piece), False))
            piece, fence = [line], mark[1]
        elif fence is not None and line.strip().startswith(fence) and line.strip().strip(fence[0]) == "":
            pieces.append(("\n".join(piece + [line]), True))
            piece, fence = [], None
        else:
            piece.append(line)
    pieces.append(("\n".join(piece), fence is not None))
    return pieces


def spans_of_code(text):
    return [match.span() for match in re.finditer(r"(?<!`)(`+)(?!`)(?:(?!\n\n).)+?(?<!`)\1(?!`)", text, re.S)]


def replace_links(text, target_of):
    """`text` with each link's address through `target_of`; code is left alone."""
    result = []
    for piece, is_code in paragraphs(text):
        if not is_code:
            def replaced(match):
                if any(start < match.start() < end for start, end in spans):
                    return match[0]
                return match[1] + target_of(match[2]) + (match[3] or "") + match[4]

            for pattern in (LINK, ATTRIBUTE, DEFINITION):
                spans = spans_of_code(piece)
                piece = pattern.sub(replaced, piece)
        result.append(piece)
    return "\n".join(result)


def for_python_markdown(text):
    """GitHub's Markdown as Python-Markdown reads it: what is in a list is indented by 4 for each level, and there is an empty
    line before a list or table that stands right below a paragraph."""
    result, columns, fence = [], [], None   # columns: where the text of each open list's item begins

    def put(line, indent):
        result.append(" " * (4 * len(columns) + max(0, indent - (columns[-1] if columns else 0))) + line if line else "")

    for line in text.split("\n"):
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        mark = re.match(r"(```+|~~~+)", stripped)
        if fence:
            put(line[min(indent, columns[-1] if columns else 0):].rstrip(), columns[-1] if columns else 0)
            fence = None if stripped == fence else fence
            continue
        before = result[-1].strip() if result else ""
        item = ITEM.match(stripped)
        if item and before and not columns and item[1][0].isdigit() and int(item[1][:-1]) != 1 and not in_list(result):
            item = None  # a number at the beginning of a line of prose
        begins = item or mark or stripped.startswith(("#", "|"))
        if stripped and (begins or not before):  # else it goes on with the paragraph before
            while columns and indent < columns[-1]:
                columns.pop()
        if mark:
            fence = mark[1]
            if before and columns:
                result.append("")
        table = stripped.startswith("|") and not before.startswith("|")
        is_first = item and not columns and not (before and ITEM.match(before)) and not in_list(result)
        if before and (table or is_first):
            result.append("")
        if begins or not before:
            put(stripped, indent)
        else:
            put(stripped, columns[-1] if columns else indent)
        if item:
            columns.append(indent + len(item[0]) - 1)
    return "\n".join(result)


def in_list(lines):
    """Whether the paragraph that ends `lines` began as a list."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if ITEM.match(line.strip()):
            return True
    return False


def title_of(text, otherwise):
    match = re.search(r"^# (.+)$", text, re.M)
    return re.sub(r"[`*]", "", match[1]).strip() if match else otherwise


class Stage:
    def __init__(self, root, build):
        self.root, self.build, self.src = root, build, os.path.join(build, "src")
        self.titles = {}    # staged page -> its title
        self.waiting = []   # files to stage: found by links

    def read(self, path):
        with open(os.path.join(self.root, path), encoding="utf-8") as file:
            return file.read()

    def write(self, path, text):
        out = os.path.join(self.src, path)
        os.makedirs(os.path.dirname(out), exist_ok=True)
        with open(out, "w", encoding="utf-8") as file:
            file.write(text)

    def documents(self):
        found = TOP + ["bench/README.md"]
        for folder, folders, names in os.walk(os.path.join(self.root, "docs")):
            folders[:] = sorted(name for name in folders if os.path.join(folder, name) != os.path.join(self.root, "docs/site"))
            found += [os.path.relpath(os.path.join(folder, name), self.root) for name in sorted(names) if name.endswith(".md")]
        return [path for path in found if os.path.isfile(os.path.join(self.root, path))]

    def run(self):
        api = os.path.join(self.src, "api")
        for name in sorted(os.listdir(api)):
            with open(os.path.join(api, name), encoding="utf-8") as file:
                self.titles[f"api/{name}"] = title_of(file.read(), name)
            header = os.path.join("include/refrain", name.removesuffix(".md") + ".h")
            if os.path.isfile(os.path.join(self.root, header)):
                self.source(header)
        documents = self.documents()
        for path in documents:
            self.titles[path] = title_of(self.read(path), path)
        for name in sorted(os.listdir(os.path.join(self.root, "examples"))):
            if name.endswith(".cc"):
                self.source(f"examples/{name}")
        for folder in ("docs/design", "docs/guide", "examples"):
            if f"{folder}/README.md" not in self.titles:
                self.folder(folder)
        for path in documents:
            text = for_python_markdown(self.read(path))
            self.write(path, replace_links(text, lambda target: self.target(target, path)))
        os.makedirs(os.path.join(self.src, "assets"), exist_ok=True)
        shutil.copy(os.path.join(self.root, "docs/site/site.css"), os.path.join(self.src, "assets/site.css"))
        self.configure()

    def target(self, target, page):
        """The address for `target`, which a link in `page` has."""
        if re.match(r"[a-z][a-z0-9+.-]*:|#|/|<", target):
            return target
        path, hash_mark, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(page), path))
        found = self.staged(path)
        if found is None:
            return target
        return os.path.relpath(found, os.path.dirname(page) or ".") + hash_mark + anchor

    def staged(self, path):
        """Where the site has `path` of the repository; stages it if it has not."""
        if path in self.titles:
            return path
        full = os.path.join(self.root, path)
        header = re.fullmatch(r"include/refrain(?:/(\w+)\.h)?", path)
        if header:
            page = f"api/{header[1] or 'README'}.md"
            if page in self.titles:
                return page
        if os.path.isdir(full):
            return f"{path}/README.md" if f"{path}/README.md" in self.titles else None
        if not os.path.isfile(full) or path.startswith(".."):
            return None
        if os.path.splitext(path)[1] in COPIED:
            out = os.path.join(self.src, path)
            os.makedirs(os.path.dirname(out), exist_ok=True)
            shutil.copy(full, out)
            return path
        return self.source(path)

    def source(self, path):
        """A page with the text of a file."""
        page = path + ".md"
        if page not in self.titles:
            text = self.read(path)
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
            language = LANGUAGES.get(os.path.splitext(path)[1], "sh" if text.startswith("#!") else "text")
            self.titles[page] = os.path.basename(path)
            self.write(page, "---\nsearch:\n  exclude: true\n---\n\n"
                             f"# {os.path.basename(path)}\n\n`{path}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n")
        return page

    def folder(self, folder):
        pages = sorted(page for page in self.titles if os.path.dirname(page) == folder)
        title = {"docs/design": "Design notes", "examples": "Examples"}.get(folder, folder)
        self.titles[f"{folder}/README.md"] = title
        self.write(f"{folder}/README.md", f"# {title}\n\n" + "".join(
            f"- [{self.titles[page]}]({os.path.basename(page)})\n" for page in pages))

    def section(self, folder, order=()):
        """The pages of a folder, those of `order` first and then by name; its README is what the section's title opens."""
        pages = sorted(page for page in self.titles if os.path.dirname(page) == folder and os.path.basename(page) != "README.md")
        first = [f"{folder}/{name}" for name in order]
        pages = [page for page in dict.fromkeys(first) if page in pages] + [page for page in pages if page not in first]
        return [f"{folder}/README.md"] + [{self.titles[page]: page} for page in pages]

    def configure(self):
        guide = re.findall(r"\]\((\w[\w-]*\.md)", self.read("docs/guide/README.md"))
        others = sorted(page for page in self.titles if os.path.dirname(page) == "docs")
        nav = [
            {"Home": "README.md"},
            {"Guide": self.section("docs/guide", guide)},
            {"API": self.section("api", ["refrain.md"])},
            {"Examples": self.section("examples", ["first.cc.md"])},
            {"Design": self.section("docs/design", ["architecture.md"])},
            {"Measurements": [{self.titles[page]: page} for page in others + ["bench/README.md"] if page in self.titles]},
            {"Project": [{self.titles[page]: page} for page in TOP[1:] if page in self.titles]},
        ]
        shown = json.dumps(nav)
        unlisted = [page for page in sorted(self.titles) if json.dumps(page) not in shown]
        with open(os.path.join(self.build, "mkdocs.yml"), "w", encoding="utf-8") as file:
            # JSON is YAML too
            file.write("# Written by docs/site/stage.py.\n"
                       f"INHERIT: {json.dumps(os.path.relpath(os.path.join(self.root, 'docs/site/mkdocs.yml'), self.build))}\n"
                       f"docs_dir: src\nsite_dir: site\nnav: {json.dumps(nav)}\n"
                       f"not_in_nav: {json.dumps(chr(10).join('/' + page for page in unlisted))}\n")


if __name__ == "__main__":
    Stage(*map(os.path.abspath, sys.argv[1:])).run()
