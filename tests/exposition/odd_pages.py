"""Random pages with unusual spaces, escapes, timestamps, order and comments, as far as the text format allows.

A page has at most one feature that Prometheus may refuse (its risk), so that most pages are accepted.
"""

from __future__ import annotations

from random import Random

# The names that are read, and similar names.
NAMES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
OTHERS = ("vllm:num_requests_running_x", "vllm:num_requests", "Xvllm:num_requests_running", "other", "_o:1", ":a")
LABELS = ("engine", "model_name", "a", "_b9", "reason", "le")
TEXTS = (
    "", "0", "tiny", "a b", "{", "}", "# {", "a=b", ",", '"', "\\", "\n", "\\n", 'x" 1', "h\u00e4\u4e2d", "\u2028",
    "\nvllm:kv_cache_usage_perc 0.5\n",
    "vllm:num_requests_running 7", "\nvllm:num_requests_running 7", "# EOF", "\t", '\\\\"', "e\u0301",
)  # fmt: skip
VALUES = (
    "0", "1", "4.0", "+4", "-1", ".5", "5.", "1e3", "1E-3", "NaN", "nan", "+Inf", "-Inf", "Inf", "inf",
    "infinity", "1795344417.33", "9007199254740993", "1e308", "4e-324", "00012", "-0", "0.1e+2",
)  # fmt: skip
BLANKS = (" ", " ", " ", "  ", "\t", " \t ")
MAYBE_BLANK = ("", "", "", "", " ", "\t")
COMMENTS = (
    "", "#", "# ", "#x", "# a b", "#vllm:num_requests_running 9", "# vllm:num_requests_running 9", "# HELP o",
    "# HELP other vllm:num_requests_running 9", "# HELP other a \\\\ b \\n c", "#  HELP  o  x", "#\tTYPE\to\tgauge",
    "# TYPE vllm:num_requests_running gauge", "# TYPE other untyped", "# HELP vllm:num_requests_waiting how {many}",
)  # fmt: skip
# Prometheus may refuse each of these: then the page is not compared.
RISKS = (
    "crlf", "exemplar", "no comma", "newline in a label", "glued value", "odd number", "leading blank", "no blank",
    "label twice", "stamp with a point", "negative stamp", "word at the end", "odd escape", "blank line", "no end",
    "commas", "eof",
)  # fmt: skip
ODD_NUMBERS = (
    "0x10",
    "1_0",
    "0x1p-2",
    "+NaN",
    "1e999",
    "1,5",
    "--1",
    "1e",
    ".",
    "\u0661",
    "0b1",
    "1d3",
    "1e+",
    "1.5.2",
)


def odd_page(random: Random) -> tuple[bytes, str]:
    """A page, and its risk (empty: none)."""
    risk = random.choice(RISKS) if random.random() < 0.5 else ""
    lines: list[str] = []
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for _ in range(random.randint(1, 9)):
        if random.random() < 0.3:
            lines.append(random.choice(COMMENTS))
        labels = {random.choice(LABELS): random.choice(TEXTS) for _ in range(random.randint(0, 3))}
        name = random.choice(NAMES if random.random() < 0.7 else OTHERS)
        # In Prometheus an empty label equals no label.
        series = (name, frozenset((label, text) for label, text in labels.items() if text))
        if series not in seen:
            seen.add(series)
            lines.append(_line(random, name, labels, risk))
    ends = "\r\n" if risk == "crlf" else "\n"
    if risk == "blank line":
        lines.insert(random.randint(0, len(lines)), random.choice(("", " ", "\t")))
    if risk == "eof":
        lines.append("# EOF")
    page = ends.join(lines) + ("" if risk == "no end" else ends)
    return page.encode(), risk


def _line(random: Random, name: str, labels: dict[str, str], risk: str) -> str:
    maybe = lambda: random.choice(MAYBE_BLANK)
    text = (random.choice((" ", "\t")) if risk == "leading blank" else "") + name + maybe()
    if labels or random.random() < 0.2:
        written = [f'{label}{maybe()}={maybe()}"{_escaped(random, value, risk)}"' for label, value in labels.items()]
        if risk == "label twice" and written:
            written.append(written[0])
        between = " " if risk == "no comma" else f"{maybe()},{maybe()}"
        end = "," if written and (random.random() < 0.2 or risk == "commas") else ""
        end += "," if risk == "commas" else ""
        text += "{" + maybe() + between.join(written) + maybe() + end + maybe() + "}"
    elif risk == "glued value":
        text += " "
    text += "" if risk == "glued value" and text.endswith("}") else random.choice(BLANKS)
    text += random.choice(ODD_NUMBERS if risk == "odd number" and random.random() < 0.5 else VALUES)
    if random.random() < 0.3:
        text += random.choice(BLANKS) + random.choice(("0", "1795344417330", "17"))
        text += ".5" if risk == "stamp with a point" else ""
    elif risk == "negative stamp":
        text += " -5"
    text += maybe()
    if risk == "exemplar":
        text += ' # {a="b"} 1'
    if risk == "word at the end":
        text += random.choice((" x", " 1 2", " {", " #"))
    return text.replace(" ", "", 1) if risk == "no blank" and random.random() < 0.3 else text


def _escaped(random: Random, text: str, risk: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    if risk == "odd escape":
        text += random.choice(("\\t", "\\x", "\\ "))
    return text if risk == "newline in a label" else text.replace("\n", "\\n")
