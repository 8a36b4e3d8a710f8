"""Doxygen's description elements as Markdown for MkDocs."""

import re

# what Doxygen makes of `--` and quotes, back to what the header says
SYMBOLS = {
    "ndash": "--", "mdash": "---", "nonbreakablespace": " ", "lsquo": "'", "rsquo": "'", "ldquo": '"', "rdquo": '"',
    "sp": " ", "times": "×", "plusmn": "±", "le": "≤", "ge": "≥", "copy": "(c)", "registered": "(R)", "trademark": "(TM)",
    "micro": "µ", "hellip": "...", "rarr": "→", "larr": "←", "minus": "-", "sup2": "²", "sup3": "³", "deg": "°", "middot": "·",
    "ne": "≠", "sum": "∑", "infin": "∞", "asymp": "≈",
}
SECTIONS = {"return": "Returns", "note": "Note", "warning": "Warning", "see": "See", "pre": "Before", "post": "After",
            "attention": "Attention", "invariant": "Invariant", "since": "Since", "author": "Author", "version": "Version",
            "date": "Date", "copyright": "Copyright"}
LISTS = {"param": "Parameters", "templateparam": "Template parameters", "exception": "Throws", "retval": "Returns"}


def escape(text):
    text = re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(text):
    if "`" not in text:
        return f"`{text}`"
    return f"`` {text} ``"


def plain(element):
    """All text of `element`, symbols included."""
    parts = [element.text or ""]
    for child in element:
        parts.append(SYMBOLS.get(child.tag) or plain(child))
        parts.append(child.tail or "")
    return "".join(parts)


def code_text(element):
    """The lines of a <programlisting>, <verbatim> or <preformatted>."""
    if element.tag == "programlisting":
        return "\n".join(plain(line).rstrip() for line in element.findall("codeline"))
    return plain(element).strip("\n")


def dedent(text):
    lines = text.split("\n")
    width = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[width:].rstrip() for line in lines)


def indented(text, by="    "):
    return "\n".join(by + line if line.strip() else "" for line in text.split("\n"))


class Text:
    """Descriptions of one scope.

    `link_code(text)` gives the address for a code span or None, `link_id(id)` that of a Doxygen id,
    `link_words(text)` escapes prose and links what it knows in it.
    """

    def __init__(self, link_code, link_id, link_words):
        self.link_code, self.link_id, self.link_words = link_code, link_id, link_words

    def blocks(self, element):
        """Markdown of a description element: its paragraphs, lists, sections, apart by empty lines."""
        if element is None:
            return ""
        found = []
        for child in element:
            found += self.block(child)
        return "\n\n".join(block for block in found if block.strip())

    def block(self, element):
        tag = element.tag
        if tag == "para":
            return self.paragraph(element)
        if re.fullmatch(r"sect\d", tag):
            title = element.find("title")
            body = [block for child in element if child.tag != "title" for block in self.block(child)]
            return ([f"**{escape(plain(title))}**"] if title is not None else []) + body
        if tag == "internal":
            return []
        return self.paragraph_of([element])

    def paragraph(self, element):
        """A <para> may hold lists and sections in its middle: each becomes a block of its own."""
        return self.paragraph_of([element.text or "", *(part for child in element for part in (child, child.tail or ""))])

    def paragraph_of(self, parts):
        found, inline = [], []

        def end_inline():
            text = re.sub(r"[ \t]*\n[ \t]*", " ", "".join(inline)).strip()
            text = re.sub(r"^([-+])(?= )", r"\\\1", re.sub(r"^(\d+)\.(?= )", r"\1\\.", text))
            text = re.sub(r"^(Cost|Threads|Source|Errors)((?: [\w ,]{1,40})?:) ", r"**\1\2** ", text)
            if text:
                found.append(text)
            inline.clear()

        for part in parts:
            if isinstance(part, str):
                inline.append(self.link_words(part))
                continue
            block = self.inner_block(part)
            if block is None:
                inline.append(self.inline(part))
            else:
                end_inline()
                found += block
        end_inline()
        return found

    def inner_block(self, element):
        """The blocks of an element that cannot stand within a line; None if it can."""
        tag = element.tag
        if tag in ("programlisting", "verbatim", "preformatted"):
            return [f"```cpp\n{dedent(code_text(element))}\n```"]
        if tag in ("itemizedlist", "orderedlist"):
            return [self.items(element, "1. " if tag == "orderedlist" else "- ")]
        if tag == "parameterlist":
            return [self.parameters(element)]
        if tag == "simplesect":
            return self.section(element)
        if tag == "variablelist":
            return self.variables(element)
        if tag == "table":
            return [self.table(element)]
        if tag == "blockquote":
            return ["\n".join("> " + line for line in self.blocks(element).split("\n"))]
        if tag == "hruler":
            return ["---"]
        if tag == "heading":
            return [f"**{escape(plain(element))}**"]
        if tag == "para":
            return self.paragraph(element)
        if tag == "parblock":
            return [self.blocks(element)]
        return None

    def inline(self, element):
        tag = element.tag
        if tag in SYMBOLS:
            return escape(SYMBOLS[tag])
        if tag == "computeroutput":
            text = re.sub(r"\s+", " ", plain(element)).strip()
            target = self.link_code(text)
            return f"[{code_span(text)}]({target})" if target else code_span(text)
        if tag == "ref":
            text, target = plain(element), self.link_id(element.get("refid"))
            return f"[{code_span(text)}]({target})" if target else code_span(text)
        if tag == "ulink":
            return f"[{escape(plain(element))}]({element.get('url')})"
        if tag in ("emphasis", "bold"):
            mark = "*" if tag == "emphasis" else "**"
            return mark + self.inlines(element).strip() + mark
        if tag == "linebreak":
            return "<br>"
        if tag == "anchor":
            return ""
        if tag in ("superscript", "subscript", "small", "ins", "del", "s", "strike", "underline", "center"):
            return self.inlines(element)
        raise SystemExit(f"docs: Doxygen made a <{tag}> that docs/site/doxygen_text.py does not know; around: {plain(element)[:80]!r}")

    def inlines(self, element):
        parts = [self.link_words(element.text or "")]
        for child in element:
            parts += [self.inline(child), self.link_words(child.tail or "")]
        return "".join(parts)

    def items(self, element, mark):
        return "\n".join(mark + indented(self.blocks(item)).strip() for item in element.findall("listitem"))

    def parameters(self, element):
        """`- name: what it is`; an exception reads on from its name: `- Name if ...`."""
        kind = element.get("kind")
        lines = []
        for item in element.findall("parameteritem"):
            names = [plain(name) for name in item.iter("parametername")]
            text = indented(self.blocks(item.find("parameterdescription"))).strip()
            if kind == "exception":
                # `@throws what fn throws`: the first word is no name
                is_name = re.search(r"::|^[A-Z]\w*$", names[0])
                lines.append(f"- {self.name(names[0]) if is_name else escape(names[0])} {text}".rstrip())
            else:
                label = ", ".join(map(code_span, names))
                lines.append(f"- {label}: {text}" if text else f"- {label}")
        return f"**{LISTS.get(kind, kind)}**\n\n" + "\n".join(lines)

    def name(self, text):
        target = self.link_code(text)
        return f"[{code_span(text)}]({target})" if target else code_span(text)

    def section(self, element):
        kind, blocks = element.get("kind"), self.blocks(element).split("\n\n")
        title = element.find("title")
        if kind == "par" and title is not None:
            return [f"**{escape(plain(title))}**", *self.blocks_without(element, "title")]
        if kind in ("remark", "par"):  # header_filter.py puts a label there
            return blocks
        label = f"**{SECTIONS.get(kind, kind.capitalize())}**"
        return [f"{label} {blocks[0]}" if not re.match(r"```|- |\|", blocks[0]) else f"{label}\n\n{blocks[0]}", *blocks[1:]]

    def blocks_without(self, element, tag):
        return [block for child in element if child.tag != tag for block in self.block(child)]

    def variables(self, element):
        found, children = [], list(element)
        for entry, item in zip(children[::2], children[1::2]):
            found.append(f"**{self.inlines(entry.find('term')).strip()}**")
            found.append(self.blocks(item))
        return found

    def table(self, element):
        rows = [[" ".join(self.blocks(entry).split()) for entry in row.findall("entry")] for row in element.findall("row")]
        if not rows:
            return ""
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
