"""Checks the wording of every text that a person reads: string literals of the program, the plugins, the clients and
the scripts; comments, also of tests; and the prose of the pages.

`phrases.txt` lists the phrases to avoid, each with a better wording. Strings of tests are not checked: they repeat the
program's messages, or are data.

    tests/wording/check.py            prints each fault, and fails if there is one
    tests/wording/check.py --list     prints every text that is checked
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHRASES = Path(__file__).with_name("phrases.txt")

# Comments, strings and what looks like them, in the order in which they must be matched.
C_LIKE = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | b?r(?P<hashes>\#*)"(?P<raw>.*?)"(?P=hashes)
      | [bc]?"(?P<string>(?:\\.|[^"\\])*)"
      | b?'(?:\\.[^']*|[^'\\])'""",
    re.S | re.X,
)
# A literal of Python or the shell ends in its line, unless it has triple quotes.
PYTHON = re.compile(r'"""(?P<long>.*?)"""|"(?P<string>(?:\\.|[^"\\\n])*)"|(?P<comment>\#[^\n]*)', re.S)
SHELL = re.compile(r"'(?P<single>[^'\n]*)'|\"(?P<string>(?:\\.|[^\"\\\n])*)\"|(?P<comment>(?<!\S)\#[^\n]*)")
# Blocks and pieces of code in a page, and its other lines.
PAGE = re.compile(r"(?P<code>^```.*?^```$)|(?P<prose>[^\n]+)", re.S | re.M)
TESTS = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\n]*\]\s*)?mod \w+ \{")
KINDS = [
    "*.rs",
    "*.py",
    "*.sh",
    "*.md",
    "*.proto",
    "*.c",
    "*.cpp",
    "*.h",
    "*.toml",
    "Makefile",
    "host/templates/*",
]


def is_checked(path):
    """Whether a file was written for this project: not generated, and not a frozen version of something."""
    return "/generated/" not in path and "/witness/" not in path and not path.endswith("host_plugin.h")


def is_test(path):
    """Whether a file is code of tests or benchmarks, whose strings are not for users."""
    parts = path.split("/")
    return (
        parts[0] == "tests"
        or "tests" in parts
        or "benches" in parts
        or path.endswith(("tests.rs", "_test.rs"))
    )


def pattern_of(path):
    """The pattern that finds the texts in a file."""
    if path.endswith(".md"):
        return PAGE
    if path.endswith((".rs", ".proto", ".c", ".cpp", ".h")):
        return C_LIKE
    return PYTHON if path.endswith(".py") else SHELL


def texts(path, source):
    """Yields the texts of a file, each with its line number."""
    tests = TESTS.search(source) if path.endswith(".rs") else None
    for match in pattern_of(path).finditer(source):
        found = match.groupdict()
        found.pop("hashes", None)
        if found.get("code"):
            continue
        text = found.pop("comment", None)
        if text is None:
            if is_test(path) and not path.endswith(".md") or tests and match.start() > tests.start():
                continue
            text = next((part for part in found.values() if part is not None), "")
        text = re.sub(r"`[^`\n]*`", "``", text.strip("/!*# "))
        text = re.sub(r"\\\n\s*", "", text)
        yield source.count("\n", 0, match.start()) + 1, text


def phrases():
    """Reads the list: a pattern and a better wording per line, as `pattern => better wording`."""
    for line in PHRASES.read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, better = line.split(" => ")
            yield re.compile(rf"\b(?:{pattern})\b", re.I), better


def faults(text, listed):
    """Yields the phrases to avoid in a text, each with the better wording."""
    for pattern, better in listed:
        if match := pattern.search(text):
            yield match.group(0), better


def check_the_check(listed):
    """Each kind of file has one fault that must be found."""
    for path, source in [
        ("a.rs", 'fn a() { b("the device is none: \\\n     tpu") }\n'),
        ("a.rs", "/// Whether it goes on\nfn a() {}\n"),
        ("a.rs", 'const A: &str = r#"nobody "reads" it"#;\n'),
        ("tests/a.rs", 'fn a() { b("is none") } // is none\n'),
        ("a.rs", '#[cfg(test)]\nmod tests {\n    // is none\n    const A: &str = "is none";\n}\n'),
        ("a.proto", "// It goes on.\nmessage A {}\n"),
        ("a.c", "/* It goes on. */\nint a;\n"),
        ("a.py", 'raise ValueError(f"{a} is none")\n'),
        ("a.sh", "printf 'it is told\\n'\n"),
        ("a.toml", "# It goes on.\n"),
        ("a.md", "It goes on.\n\n```sh\n# goes on\n```\nThis is `nobody`.\n"),
    ]:
        found = [fault for _, text in texts(path, source) for fault in faults(text, listed)]
        assert len(found) == 1, (source, found)
    assert not list(faults("there is a folder named none", listed))


def main():
    listed = list(phrases())
    check_the_check(listed)
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *KINDS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    count = bad = 0
    for path in files:
        if not is_checked(path) or not (ROOT / path).is_file() or path == "tests/wording/check.py":
            continue
        for line, text in texts(path, (ROOT / path).read_text()):
            count += 1
            if "--list" in sys.argv and " " in text.strip():
                print(f"{path}:{line}: {' '.join(text.split())}")
            for said, better in faults(text, listed):
                bad += 1
                where = f"{path}:{line}: “{said}”: write {better}"
                print(f"{where}: {' '.join(text.split())[:90]}", file=sys.stderr)
    print(f"wording: {count} texts of {len(files)} files, {bad} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
