"""The public declarations of the headers, in their order, from Doxygen's XML and the headers' own text."""

import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

HIDDEN = re.compile(r"(^|::)detail(::|$)")
# before a `{` that does not begin a body: an initializer, a requires-expression
IN_DECLARATION = re.compile(r"(=|\brequires|(=|\brequires|&&|\|\|)\s*requires\s*\([^(){}]*\))\s*$")
MEMBER_KINDS = ("function", "variable", "typedef", "enum", "define")


@dataclass
class Declaration:
    kind: str             # function, variable, typedef, enum, define, class
    name: str             # "checkpoint", "CheckpointOptions::policy", "nn::Checkpoint": without `refrain::`
    header: str           # "checkpoint.h"
    line: int
    end: int              # last line of its body, or `line`
    code: str             # as the header has it, without its body
    element: object       # with <briefdescription> and <detaileddescription>
    id: str
    members: list = field(default_factory=list)   # of a class, or the values of an enum
    anchor: str = ""

    @property
    def last_name(self):
        return self.name.rsplit("::", 1)[-1] if "operator" not in self.name else self.name[self.name.index("operator"):]

    @property
    def scope(self):
        return self.name[: -len(self.last_name)].rstrip(":")

    @property
    def is_constructor(self):
        return self.kind == "function" and self.last_name == self.scope.rpartition("::")[2]

    @property
    def documented(self):
        return any(any(text.strip() for text in (self.element.find(tag).itertext() if self.element.find(tag) is not None else ()))
                   for tag in ("briefdescription", "detaileddescription"))


def without_prefix(name):
    return name[len("refrain::"):] if name.startswith("refrain::") else name


def tidy_type(text):
    """Doxygen's `std::optional< bool >` and `const T &` as clang-format has them."""
    text = re.sub(r"\s+", " ", text).replace("< ", "<").replace(" >", ">")
    return re.sub(r" (&&|&|\*)", r"\1", text).strip()


def text_of(element, tag):
    child = element.find(tag)
    return "" if child is None else "".join(child.itertext()).strip()


def first_line(lines, number):
    """The line on which the declaration that Doxygen has at `number` (from 1) begins: that of its `template` or type."""
    i = number - 1
    while i > 0:
        above = lines[i - 1].strip()
        ends = re.search(r"[;{}]\s*(//.*)?$|\b(public|private|protected):$", above) and not above.startswith("requires")
        if not above or above.startswith(("//", "#")) or ends:
            break
        i -= 1
    return i


def declaration_text(lines, number):
    """What the header says from there to the `;` or the body, dedented."""
    start = first_line(lines, number)
    text = "\n".join(re.sub(r"\bREFRAIN_API\s+", "", re.sub(r"\s*//.*$", "", line)) for line in lines[start:start + 60])
    depth, i, seen_parameters = 0, 0, False
    while i < len(text):
        c = text[i]
        if c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
            seen_parameters = seen_parameters or (c == ")" and depth == 0)
        elif c == "{":
            if depth == 0 and not IN_DECLARATION.search(text[:i]):
                break
            depth += 1
        elif c == "}":
            depth -= 1
        elif c == ";" and depth == 0:
            break
        elif c == ":" and depth == 0 and seen_parameters and text[i + 1] != ":" and text[i - 1] != ":":
            break  # a constructor's initializers
        i += 1
    found = text[:i].rstrip()
    indent = len(lines[start]) - len(lines[start].lstrip())
    return "\n".join(line[indent:] if not line[:indent].strip() else line for line in found.split("\n"))


class Headers:
    def __init__(self, xml, include):
        self.include = include
        self.names = sorted(name for name in os.listdir(os.path.join(include, "refrain")) if name.endswith(".h"))
        self.lines = {name: self._read(name) for name in self.names}
        self.descriptions = {}                                    # header -> its <compounddef>
        self.declarations = {name: [] for name in self.names}     # header -> its own, in order
        compounds = [ElementTree.parse(os.path.join(xml, name)).getroot().find("compounddef")
                     for name in sorted(os.listdir(xml)) if name.endswith(".xml") and name not in ("index.xml", "Doxyfile.xml")]
        for compound in compounds:
            kind = compound.get("kind")
            if kind == "file":
                self._add_file(compound)
            elif kind == "namespace" and not HIDDEN.search(text_of(compound, "compoundname")):
                for member in self._members(compound):
                    self.declarations[member.header].append(member)
        classes = [self._class(c) for c in compounds if c.get("kind") in ("class", "struct", "union")]
        for found in filter(None, classes):
            self.declarations[found.header].append(found)
        for name in self.names:
            self.declarations[name] = self._once_each(self.declarations[name])

    @staticmethod
    def _once_each(declarations):
        """In order; of the two that Doxygen makes of a name in an inline namespace, the shorter. Without deduction guides."""
        found = {}
        classes = {declaration.name for declaration in declarations if declaration.kind == "class"}
        for declaration in sorted(declarations, key=lambda d: (d.line, len(d.name))):
            if declaration.kind == "function" and declaration.name in classes and not declaration.documented:
                continue
            found.setdefault((declaration.kind, declaration.line, declaration.last_name, declaration.code), declaration)
        return list(found.values())

    def _read(self, name):
        with open(os.path.join(self.include, "refrain", name), encoding="utf-8") as file:
            return file.read().split("\n")

    def _header_of(self, element):
        location = element.find("location")
        name = os.path.basename(location.get("declfile") or location.get("file") or "")
        return name if name in self.lines else None

    def _add_file(self, compound):
        name = text_of(compound, "compoundname")
        if name not in self.lines:
            return
        self.descriptions[name] = compound
        for member in self._members(compound):
            if member.kind == "define":
                self.declarations[name].append(member)

    def _class(self, compound):
        name = text_of(compound, "compoundname")
        header = self._header_of(compound)
        if HIDDEN.search(name) or compound.get("prot") != "public" or not header or not name.startswith("refrain::"):
            return None
        line = int(compound.find("location").get("line"))
        code = declaration_text(self.lines[header], line)
        found = Declaration("class", tidy_type(without_prefix(name)), header, line, line, code, compound, compound.get("id"))
        found.members = [member for member in self._members(compound) if self._is_shown(member)]
        if not found.documented and ("<" in name or not found.members):
            return None  # a specialization for the compiler, or named only
        return found

    def _is_shown(self, member):
        """Leaves out constructors, destructors and assignments that the comment of the class covers."""
        if member.documented:
            return True
        return not re.match(r"~|operator=(?!=)", member.last_name) and not re.search(r"= (delete|default)$", member.code)

    def _members(self, compound):
        scope = text_of(compound, "compoundname") if compound.get("kind") != "file" else ""
        found = []
        for element in compound.iter("memberdef"):
            header = self._header_of(element)
            if element.get("kind") not in MEMBER_KINDS or element.get("prot") != "public" or not header:
                continue
            found.append(self._member(element, scope, header))
        return sorted(found, key=lambda member: member.line)

    def _member(self, element, scope, header):
        kind, location = element.get("kind"), element.find("location")
        name = without_prefix(f"{scope}::{text_of(element, 'name')}" if scope else text_of(element, "name"))
        line = int(location.get("declline") or location.get("line"))
        end = max(line, int(location.get("bodyend") or -1)) if location.get("bodyfile", "") == location.get("file") else line
        lines = self.lines[header]
        if kind == "variable":
            code = " ".join(filter(None, [tidy_type(text_of(element, "type")), text_of(element, "name")]))
            code += tidy_type(text_of(element, "argsstring"))
            initializer = text_of(element, "initializer")
            code += (" " if initializer.startswith("=") else "") + initializer
        elif kind == "define":
            code = f"#define {text_of(element, 'name')} {text_of(element, 'initializer')}".rstrip()
        else:
            code = declaration_text(lines, line)
        found = Declaration(kind, name, header, line, end, code, element, element.get("id"))
        if kind == "enum":
            for value in element.findall("enumvalue"):
                initializer = text_of(value, "initializer")
                code = " ".join(filter(None, [text_of(value, "name"), initializer]))
                found.members.append(Declaration("value", f"{name}::{text_of(value, 'name')}", header, line, line, code, value,
                                                 value.get("id")))
        return found

    def follows(self, member, before):
        """Whether `member` stands right below `before`, without a line or comment between: one comment for both."""
        if member.kind != before.kind or member.scope != before.scope or member.documented:
            return False
        lines = self.lines[member.header]
        if any("///<" in line for line in lines[before.line - 1:before.end]):
            return False  # a comment beside a declaration is for it alone
        start = first_line(lines, member.line)
        return all(line.strip() and not line.strip().startswith("//") for line in lines[before.end:start]) and start >= before.line
