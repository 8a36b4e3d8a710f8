#!/usr/bin/env python3
"""Finds words of the old dialect where users read, and names the word to use instead (docs/guide/glossary.md).

    tests/lint/phrases_test.py [--root DIR]

Reads comments and string literals of include/, string literals of src/ and apps/, README.md and docs/guide/: prose and the comments of C++
snippets, not transcripts. Adjacent literals are one text, and so are the lines of a comment or paragraph.
Exit codes: 0 none found; 1 found: each line has file:line, the phrase, the preferred words and the sentence.
"""

import argparse
import bisect
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

MODAL = r"\b(?:can|cannot|can't|could|must|may|might|has to|have to|should|would|does not|do not|to)"
# Not before what an ordinary "leave" goes on with: "leave it out", "leaves the caches cold", "leave room".
NO_OBJECT = (
    r"(?! (?:it|them|him|us|you|out|off|to|over|open|alone|behind|room|space|enough|unchanged|no|nothing|a|an|the|this|that|these|those|"
    r"its|your|their|one|every|each|some|any|all|\d)\b| `)"
)
PLAIN_THINGS = (
    "run|call|step|training|train|torch|refrain|autograd|model|peak|function|loop|gpt|net|forward|backward|maximum|time|ms|result|baseline|"
    "gradient|program|ops?|operator|region|checkpoint|mode|source|layer|block|variant|figure|number|part"
)

# (pattern in lower case, what to write). Matched in text with single spaces, whatever its case.
PHRASES = [
    # evict, evicted, resident
    (r"\b(?:leaves?|leaving|left) (?:the )?memory\b", "evict, evicted"),
    (r"\b(?:has|have|had) left\b(?! (?:over|to)\b)", "is evicted"),
    (r"\b(?:never|nothing|much|little|early|first|what|who|which values?|all that (?:can|may)) leaves?\b" + NO_OBJECT, "evict"),
    (MODAL + r" (?:\w+ )?leave\b" + NO_OBJECT, "evict, evictable"),
    (r"\b(?:values?|tensors?|bytes|it|they|that) leaves?(?= (?:first|last|early|when|where|while|before|again|and|or)\b|[.,;:]|$)", "evict"),
    (r"\bleaves? (?:first|early|last)\b", "is evicted first"),
    (r"\bbytes (?:are|were|is) (?:not |still |all )?there\b", "resident"),
    (r"\bnot in memory (?:behind|any more)\b", "evicted"),
    (r"\bdrop and compute\b", "evict and recompute"),
    # recompute, rematerialize, replay pass
    (r"\b(?:come|comes|coming|came) back\b", "is recomputed, is resident again; fetched (offload)"),
    (r"\b(?:bring|brings|bringing|brought) (?:[\w`'.()-]+ ){0,4}back\b", "recompute, make resident; fetch (offload)"),
    (r"\bgets? back what\b", "recomputes"),
    (r"\bcomput(?:e|es|ed|ing) (?:[\w`'.()-]+ ){0,3}again\b", "recompute"),
    (r"\brecomputed? again\b", "recompute"),
    (r"\brefill(?:s|ed|ing)?\b(?! through)", "recompute, replay pass; for memory of the user: fill again, reuse"),
    (r"\b(?:operators?|ops|kernels?) (?:\w+ ){0,2}(?:run|runs|ran|running) again\b", "operators recomputed, replayed"),
    (r"\b(?:what|that|who) (?:must |may |can )?(?:run|runs|ran) again\b", "recomputed, replayed"),
    (r"\bthousands of operators again\b|\boperators again\b", "operators recomputed"),
    (r"\bplays? (?:[\w`']+ ){0,4}again\b", "replay"),
    # baseline
    (r"\bplainly\b", "in the baseline, without checkpointing, as a pass-through"),
    (r"\bplain (?:" + PLAIN_THINGS + r")s?\b", "baseline (the run without the library), pass-through, without regions"),
    (
        r"\b(?:the|a|an|than|as|of|with|no|is|are|runs?|against|beside|and|or|pieces?|others?) plain\b"
        r"(?= ?(?:[.,;:|)/]|$|(?:one|keeps?|and|or|until)\b))",
        "baseline, pass-through",
    ),
    (r"\bplain's\b|\bthe plain\b(?! (?:" + PLAIN_THINGS + r"|one|pointer|text|struct|storage|wheel|keeps?))", "the baseline's"),
    # peak, limit, budget, fraction, lower bound
    (r"\bleast peak\b", "lowest peak"),
    (r"(?:^|[.;:(] ?)most (?:resident )?bytes (?:of|at|in|that)\b", "limit on the bytes, peak"),
    (r"\bwhat (?:it|they|the step|the process|tensors) (?:may|can) (?:take|use)\b", "limit, budget"),
    (r"\b(?:as a|each|a) part of (?:what|that|the (?:step|peak|plain|baseline|way|bytes|time|memory|activation)|a (?:step|plain))", "fraction of"),
    (r"\bparts of (?:what|the (?:peak|plain|baseline|step)|a (?:plain|step))", "fractions of"),
    (r"\bpart of the way\b|\ba part from\b", "fraction between"),
    (r"\badds? (?:at least|the least)\b|\bat least (?:is )?proven\b", "lower bound on the added time"),
    (r"\bof as many (?:bytes )?(?:holds?|as)\b", "of the same size"),
    # does not fit, infeasible
    (r"(?<!\bwhat it )\bcannot do\b|\b(?:cannot|could not) be done\b", "does not fit, infeasible"),
    (r"\ba limit (?:of fewer bytes )?can do\b|\bwhat (?:a cap|your model|a limit) can do\b", "fits"),
    (r"\bthat none can keep\b|\bno plan (?:meets|keeps)\b", "infeasible"),
    # saved tensor, live range, last use
    (r"\bwhat (?:a |the |your )?(?:\w+ ){1,2}(?:leaves?|left|keeps|saves)\b(?= (?:behind|in memory|for backward))", "saved tensors"),
    (r"\b(?:leaves?|left) (?:behind )?for backward\b", "saves, saved tensors"),
    (r"\bwhat is left\b|\bthat is left (?:in memory|of)\b", "remains, the remaining ..."),
    (r"\bfrom (?:its )?birth\b|\b(?:its|until|to) death\b", "live range, last use"),
    (r"\bcomes? (?:and|or) go(?:es)?\b|\bcomes? to stay\b", "is allocated and freed; stays allocated"),
    (r"\b(?:bytes|memory|casts?|slots?|blocks?) go(?:es)?\b(?= (?:with|at|when|where)\b)", "is freed"),
    (r"\b(?:let|lets|letting) (?:[\w`']+ )?go\b(?! (?:of the lock|through|on))", "free, release"),
    # pass-through, overrides, set by
    (r"\bgo(?:es)? before\b", "overrides, takes precedence over"),
    (r"\btold so\b|\btold to it\b|\b(?:is|are|was|were|been) told (?:of|about|by|as|which|what|that)\b", "set by, known to"),
    (r"\bsa(?:y|ys|id) so\b|\b(?:is|are) said once\b|\bsaid once\b", "report, reported once"),
    (r"\bwithout a word\b", "silently"),
    (r"\bis asked (?:of|for) nothing\b|\bnobody (?:has )?(?:asked|told|said)\b", "not requested, not known"),
    # ranks
    (r"\b(?:did|does|do|has|have) not come\b(?! (?:from|with|to (?:an|the) (?:end|conclusion)))", "a rank is missing"),
    (r"\bnot all came\b|\ball ranks to come\b|\branks? (?:to|who|that) comes?\b", "join"),
    (r"\b(?:is|are|be|being|how|comes?) late\b|\blater than (?:the|its|a) (?:\w+'s )?timeout\b", "timed out"),
    (r"\brank\w*\b[^.;|]{0,40}\b(?:has|have) ended\b|\b(?:a|another|one|no|that|the other) ranks? ends\b", "exited"),
    (r"\bmeeting point\b|\bmeets? the other ranks\b|\bmeet (?:at|in)\b", "rendezvous, join"),
    (r"\bthe starter\b|\bits starter\b", "launcher"),
    # recompute mode
    (
        r"\b(?:both|two|second|each|either|one) sources?\b(?! (?:file|text|tree|code))"
        r"|\b(?:with|by|in) the (?:\w+ )?source `k|\bthe replay source\b|\bmixtures? of sources\b",
        "recompute mode",
    ),
    # sentences that a reader must learn
    (r"\bwhat is no\b|(?<!there )\bis no (?:trace|plan|json|number|tensor|document|directory|folder)\b", "is not a ..."),
    (r"\b(?:want|wants|wanted|wanting) (?:a )?gradients?\b|\bgradients? (?:is|are )?wanted\b", "require a gradient"),
    (r"\bdear(?:er|est)? (?:to|than|for)\b|\bwhat is dear\b|\b(?:is|are) dear\b", "expensive"),
    (r"\b(?:missing|in memory|evicted|computed) behind\b|\bwhat (?:is|lies) behind\b", "including its evicted ancestors"),
    (r"\brefrains? from\b", "does not (no pun on the name)"),
    (r"\bas ever\b|\bas far again\b", "as before; as far above"),
    (r"\bwho (?:of|among) (?:them|us|these)\b", "which of"),
    (r"\bhas an? effects?\b(?! (?:on|of|outside))", "has side effects"),
    (r"\bhow (?:much|many|long) it may\b", "limit"),
]
# In help texts of the tool: what an option's text must not begin with.
HELP_START = re.compile(r"(?:of|what|who|how)\b(?! (?:many|much)\b)", re.I)
HELP_FILES = ("apps/refrain/options.cc",)
# In public headers: what the first sentence of a comment must not begin with.
COMMENT_START = re.compile(r"(?:Of|What|Who)\b(?! is\b.*\?)")

COMPILED = [(re.compile(pattern), words) for pattern, words in PHRASES]
ANY = re.compile("|".join(f"(?:{pattern})" for pattern, _ in PHRASES))

CPP = re.compile(
    r'(?P<block>/\*.*?\*/)|(?P<line>//[^\n]*)|R"(?P<tag>[^()\\\s]*)\((?P<raw>.*?)\)(?P=tag)"|(?P<text>"(?:\\.|[^"\\\n])*")'
    r"|(?P<char>(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+')|(?P<include>^[ \t]*#[ \t]*include[^\n]*)",
    re.S | re.M,
)
ESCAPES = re.compile(r"\\(?:[nrt]|.)")
SENTENCE_END = re.compile(r"[.!?;](?= |$)| \| |\n")


class Text:
    """Prose gathered from pieces of one file, with the line of each piece."""

    def __init__(self, kind):
        self.kind = kind  # "comment", "string" or "prose"
        self.goes_on = False  # not the beginning of a comment
        self.parts, self.starts, self.lines, self.length = [], [], [], 0

    def add(self, piece, line, separator=" "):
        piece = " ".join(piece.split()) if separator else re.sub(r"\s+", " ", piece)
        if not piece:
            return
        if self.parts and separator:
            piece = separator + piece
        self.starts.append(self.length)
        self.lines.append(line)
        self.parts.append(piece)
        self.length += len(piece)

    def text(self):
        return "".join(self.parts)

    def line_at(self, position):
        return self.lines[max(0, bisect.bisect_right(self.starts, position) - 1)]


def comment_texts(comments):
    """Texts of [(line, text, stands alone on its line)]: a comment goes on in the next line, up to a blank comment line."""
    current, expected = Text("comment"), None
    for line, body, alone in comments:
        if not (alone and line == expected):
            yield current
            current = Text("comment")
        for number, text in enumerate(body.split("\n"), line):
            text = re.sub(r"^\s*(?:///?<?|/\*\*?|\*(?!\*))|\*/\s*$", "", text).strip()
            if not text or re.match(r"@\w|[-*] ", text):  # the end of a paragraph, an item of a list
                yield current
                current = Text("comment")
                current.goes_on = True
            current.add(re.sub(r"^(?:@(?:param|tparam)(?:\[\w+\])? +[\w., ]+?  +|@\w+ +|[-*] )", "", text), number)
        expected = line + body.count("\n") + 1
    yield current


def cpp_texts(source, with_comments):
    """Comments of C++, and string literals, of which adjacent ones are one text."""
    line, seen, last_end = 1, 0, 0
    comments, strings, string = [], [], None
    for match in CPP.finditer(source):
        line += source.count("\n", seen, match.start())
        seen = match.start()
        if match["line"] is not None or match["block"] is not None:
            alone = not source[source.rfind("\n", 0, match.start()) + 1 : match.start()].strip()
            comments.append((line, match["line"] or match["block"], alone))
        elif match["text"] is not None or match["raw"] is not None:
            if string is None or source[last_end : match.start()].strip():
                string = Text("string")
                strings.append(string)
            body = match["text"][1:-1] if match["text"] is not None else match["raw"]
            for number, part in enumerate(body.replace("\n", " \n").split("\n"), line):
                string.add(ESCAPES.sub(lambda m: " " if m[0][1] in "nrt" else m[0][1:], part), number, separator="")
        else:  # a character or an #include
            string = None
        last_end = match.end()
    yield from (text for text in strings if " " in text.text().strip())  # others are names and keys
    if with_comments:
        yield from comment_texts(comments)


FENCE = re.compile(r"^\s*```(\w*)")


def markdown_texts(source):
    """Paragraphs, list items, table rows and comments of C++ snippets. Other fenced text is what a program printed, or is typed."""
    prose, fence = Text("prose"), None
    for number, line in enumerate(source.split("\n"), 1):
        opened = FENCE.match(line)
        if opened:
            if prose.parts:
                yield prose
                prose = Text("prose")
            fence = None if fence is not None else opened[1]
            continue
        if fence is not None:
            if fence == "cpp" and "//" in line:
                comment = Text("comment")
                comment.add(line.split("//", 1)[1], number)
                yield comment
            continue
        starts_new = re.match(r"\s*(?:[*+-] |\d+\. |\||#|<!--)", line)
        if (starts_new or not line.strip()) and prose.parts:
            yield prose
            prose = Text("prose")
        prose.add(re.sub(r"^\s*(?:[*+-] |\d+\. |#+ )", "", line), number)
    if prose.parts:
        yield prose


def sentence_around(text, start, end):
    begin = max([m.end() for m in SENTENCE_END.finditer(text, 0, start)], default=0)
    after = SENTENCE_END.search(text, end)
    return text[begin : after.end() if after else len(text)].strip(" |")


def check_text(name, text):
    body = text.text()
    lower = body.lower()
    if ANY.search(lower):  # one search first: most texts have none
        taken = []
        for pattern, words in COMPILED:
            for match in pattern.finditer(lower):
                if not any(begin < match.end() and match.start() < end for begin, end in taken):
                    taken.append(match.span())
                    yield text.line_at(match.start()), match[0].strip(), words, sentence_around(body, *match.span())
    if text.kind == "string" and name in HELP_FILES and HELP_START.match(body):
        yield text.lines[0], body.split(" ", 1)[0], "begin a help text with a noun or a verb", sentence_around(body, 0, 1)
    if text.kind == "comment" and not text.goes_on and name.startswith("include/") and COMMENT_START.match(body):
        yield text.lines[0], body.split(" ", 1)[0], "begin the comment with a verb or a noun", sentence_around(body, 0, 1)


def files(root):
    """(path relative to root, kind of reading)"""
    for folder, comments in (("include", True), ("src", False), ("apps", False)):
        for where, folders, names in os.walk(os.path.join(root, folder)):
            folders.sort()
            for name in sorted(names):
                if name.endswith((".h", ".cc")):
                    yield os.path.relpath(os.path.join(where, name), root), comments
    yield "README.md", None
    guide = os.path.join(root, "docs", "guide")
    if os.path.isdir(guide):
        for name in sorted(os.listdir(guide)):
            if name.endswith(".md"):
                yield f"docs/guide/{name}", None


def check(root):
    """[(file, line, phrase, preferred words, sentence)], in the order of files and lines."""
    found = []
    for name, comments in files(root):
        path = os.path.join(root, name)
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as file:
            source = file.read()
        texts = markdown_texts(source) if comments is None else cpp_texts(source, comments)
        hits = [(name, *hit) for text in texts for hit in check_text(name, text)]
        found += sorted(hits, key=lambda hit: hit[1])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=ROOT)
    found = check(parser.parse_args().root)
    for name, line, phrase, words, sentence in found:
        print(f"{name}:{line}: `{phrase}`; write: {words}\n    {sentence}")
    print(f"phrases: {len(found)} to rewrite (docs/guide/glossary.md)" if found else "phrases: none of the old dialect")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
