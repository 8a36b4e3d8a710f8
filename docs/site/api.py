#!/usr/bin/env python3
"""Writes the API reference: a Markdown page for each public header, and an index of all names.

    docs/site/api.py XML INCLUDE OUT

XML is Doxygen's output, INCLUDE the folder that holds refrain/, OUT the folder for the pages.
"""

import os
import re
import sys

sys.dont_write_bytecode = True
from declarations import Headers  # noqa: E402
from doxygen_text import Text, escape, indented, plain  # noqa: E402

HEADER_IN_PROSE = re.compile(r"\brefrain/(\w+\.h)\b")


def page_of(header):
    return header.removesuffix(".h") + ".md"


class Names:
    """Where each name is explained."""

    def __init__(self, headers):
        self.headers = headers
        self.by_name, self.by_id, self.by_last_name = {}, {}, {}
        for header in headers.names:
            used = set()
            for declaration in headers.declarations[header]:
                self._add(declaration, used)
                for member in declaration.members:
                    self._add(member, used)
                    for value in member.members:
                        self._add(value, used)

    def _add(self, declaration, used):
        anchor = re.sub(r"\W+", "-", declaration.name.replace("operator()", "operator-call").replace("~", "destructor-")).strip("-")
        base, n = anchor, 1
        while anchor in used:
            n += 1
            anchor = f"{base}-{n}"
        used.add(anchor)
        declaration.anchor = anchor
        self.by_id[declaration.id] = declaration
        self.by_name.setdefault(declaration.name, declaration)
        if not declaration.is_constructor:
            self.by_last_name.setdefault(declaration.last_name, {})[declaration.name] = declaration

    def find(self, text, scope):
        """The declaration that `text` means in `scope` ("CheckpointOptions", "nn", or ""), as in C++."""
        match = re.fullmatch(r"(?:::)?(?:refrain::)?(~?\w+(?:::\w+)*)(?:<[\w, ]*>)?(?:\(\))?", text)
        if not match:
            return None
        name, outer = match[1], scope
        while outer:
            found = self.by_name.get(f"{outer}::{name}")
            if found:
                return self.by_name[found.scope] if found.is_constructor else found
            outer = outer.rpartition("::")[0]
        found = self.by_name.get(name)
        alike = self.by_last_name.get(name, {})
        if found is None:  # an enumerator without its type
            return next(iter(alike.values())) if len(alike) == 1 and next(iter(alike.values())).kind == "value" else None
        # `profile` in a text about options may be that of a class beside: no link is better than a wrong one
        is_alone = sum(other.kind == "function" for other in alike.values()) <= 1
        return found if found.kind in ("class", "enum", "typedef") or "::" in name or is_alone else None

    def address(self, declaration, header):
        return ("" if declaration.header == header else page_of(declaration.header)) + "#" + declaration.anchor

    def text(self, header, scope="", own=(), parameters=()):
        """Descriptions in `scope` on the page of `header`. Code that names `own` declarations or a parameter is not linked."""

        def link_code(code):
            header_name = HEADER_IN_PROSE.fullmatch(code) or re.fullmatch(r"(\w+\.h)", code)
            if header_name and header_name[1] in self.headers.lines:
                return None if header_name[1] == header else page_of(header_name[1])
            if code in parameters:
                return None
            found = self.find(code, scope)
            return None if not found or found.name in own else self.address(found, header)

        def link_id(id):
            found = self.by_id.get(id)
            return self.address(found, header) if found else None

        def link_words(text):
            found, at = [], 0
            for match in HEADER_IN_PROSE.finditer(text):
                if match[1] in self.headers.lines and match[1] != header:
                    found += [escape(text[at:match.start()]), f"[{escape(match[0])}]({page_of(match[1])})"]
                    at = match.end()
            return "".join(found) + escape(text[at:])

        return Text(link_code, link_id, link_words)


class Page:
    def __init__(self, headers, names, header):
        self.headers, self.names, self.header = headers, names, header
        self.lines = []

    def add(self, *blocks):
        self.lines += [block for block in blocks if block]

    def description(self, declaration, own=None):
        scope = declaration.name if declaration.kind in ("class", "enum") else declaration.scope
        parameters = {plain(name) for name in declaration.element.iter("declname")}
        text = self.names.text(self.header, scope, own or {declaration.name}, parameters)
        return "\n\n".join(filter(None, (text.blocks(declaration.element.find(tag))
                                         for tag in ("briefdescription", "detaileddescription"))))

    def write(self):
        self.add(f"# {self.header}", f"```cpp\n#include \"refrain/{self.header}\"\n```")
        compound = self.headers.descriptions.get(self.header)
        if compound is not None:
            text = self.names.text(self.header)
            self.add(text.blocks(compound.find("briefdescription")), text.blocks(compound.find("detaileddescription")))
        declarations = self.headers.declarations[self.header]
        for group in self.groups([d for d in declarations if d.kind != "class"], declarations):
            if group[0].kind == "class":
                self.write_class(group[0])
            else:
                self.write_group(group, "##")
        if not declarations:
            included = [line.split('"')[1] for line in self.headers.lines[self.header] if line.startswith('#include "refrain/')]
            self.add("\n".join(f"- [{escape(name)}]({page_of(os.path.basename(name))})" for name in included
                               if os.path.basename(name) in self.headers.lines))
        self.add(f"[The header itself](../include/refrain/{self.header}.md)")
        return "\n\n".join(self.lines) + "\n"

    def groups(self, members, all_members):
        """Lists of declarations that share a heading: overloads side by side, and those below another without a comment."""
        found = []
        for declaration in all_members:
            last = found[-1] if found else None
            if declaration in members and last and last[0].kind == declaration.kind != "enum" and (
                    last[-1].name == declaration.name or self.headers.follows(declaration, last[-1])):
                last.append(declaration)
            else:
                found.append([declaration])
        return found

    def write_group(self, group, mark):
        """One heading; then each code block with the text below it. What has no comment shares that of the one above."""
        names = list(dict.fromkeys(map(self.title, group) if mark == "###" else (f"`{declaration.name}`" for declaration in group)))
        self.add(f"{mark} {', '.join(names)} {{#{group[0].anchor}}}")
        blocks = []
        for declaration in group:
            if blocks and self.headers.follows(declaration, blocks[-1][-1]):
                blocks[-1].append(declaration)
            else:
                blocks.append([declaration])
        own = {declaration.name for declaration in group}
        for block in blocks:
            anchors = "".join(f'<a id="{declaration.anchor}"></a>' for declaration in block if declaration is not group[0])
            self.add(anchors, "```cpp\n" + "\n".join(declaration.code + self.end(declaration) for declaration in block) + "\n```",
                     self.description(block[0], own))
        if group[0].kind == "enum":
            self.add(*(self.entry(value) for value in group[0].members))

    @staticmethod
    def title(member):
        return "Constructor" if member.is_constructor else f"`{member.last_name}`"

    @staticmethod
    def end(declaration):
        return "" if declaration.kind in ("enum", "class", "define") else ";"

    def entry(self, declaration):
        """A term with its text: an enumerator, a member variable."""
        text = self.description(declaration)
        term = f"`{declaration.code}` {{#{declaration.anchor}}}"
        return term + "\n:   " + (indented(text).strip() or '<span class="none"></span>')

    def write_class(self, declaration):
        self.add(f"## `{declaration.name}` {{#{declaration.anchor}}}", f"```cpp\n{declaration.code}\n```", self.description(declaration))
        for group in self.groups([m for m in declaration.members if m.kind != "variable"], declaration.members):
            if group[0].kind == "variable":
                self.add(self.entry(group[0]))
            else:
                self.write_group(group, "###")


def write_index(headers, names):
    lines = ["# API reference", "", "Each public header has a page. `#include \"refrain/refrain.h\"` includes all of them.", ""]
    rows = ["| header | names |", "|---|---|"]
    for header in headers.names:
        if not headers.declarations[header]:
            continue
        top = {}
        for declaration in headers.declarations[header]:
            top.setdefault(declaration.name, f"[`{declaration.name}`]({names.address(declaration, None)})")
        rows.append(f"| [`{header}`]({page_of(header)}) | {', '.join(top.values())} |")
    return "\n".join(lines + rows) + "\n"


def main():
    xml, include, out = sys.argv[1:]
    headers = Headers(xml, include)
    names = Names(headers)
    os.makedirs(out, exist_ok=True)
    for header in headers.names:
        with open(os.path.join(out, page_of(header)), "w", encoding="utf-8") as file:
            file.write(Page(headers, names, header).write())
    with open(os.path.join(out, "README.md"), "w", encoding="utf-8") as file:
        file.write(write_index(headers, names))
    print(f"{len(headers.names)} headers, {len(names.by_id)} names")


if __name__ == "__main__":
    main()
