"""Checks the wording of what people read: string literals of the program, of the shipped plugins, of the
clients and scripts, and the help texts that clap takes from doc comments.

`phrases.txt` lists the phrases that do not belong there, each with better words. Code of tests is not read.

    tests/wording/check.py            prints each fault, and fails if there is one
    tests/wording/check.py --list     prints every text that is checked
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHRASES = Path(__file__).with_name("phrases.txt")

# Comments, raw strings, strings and characters of Rust, in the order in which they must be tried.
RUST = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | b?r(?P<hashes>\#*)"(?P<raw>.*?)"(?P=hashes)
      | [bc]?"(?P<string>(?:\\.|[^"\\])*)"
      | b?'(?:\\.[^']*|[^'\\])'""",
    re.S | re.X,
)
# Strings of Python and of the shell: a literal stays within its line, unless its quotes are tripled.
PYTHON = re.compile(r'"""(?P<long>.*?)"""|"(?P<string>(?:\\.|[^"\\\n])*)"|(?P<comment>\#[^\n]*)', re.S)
SHELL = re.compile(r"'(?P<single>[^'\n]*)'|\"(?P<string>(?:\\.|[^\"\\\n])*)\"|(?P<comment>(?<!\S)\#[^\n]*)")
TESTS = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\n]*\]\s*)?mod \w+ \{.*", re.S)
HELP = re.compile(
    r"clap::(?:Args|Parser|Subcommand|ValueEnum)|derive\([^)]*\b(?:Args|Parser|Subcommand|ValueEnum)\b"
)


def is_test(path):
    """Whether a file is code of tests or benchmarks, whose strings no user reads."""
    parts = path.split("/")
    return (
        parts[0] == "tests"
        or "tests" in parts
        or "benches" in parts
        or path.endswith(("tests.rs", "_test.rs"))
        or "/generated/" in path
    )


def texts(path, source):
    """The texts of a file that a person may read, each with the number of its line."""
    if path.endswith(".rs"):
        source = TESTS.sub("", source)
        pattern, with_help = RUST, bool(HELP.search(source))
    elif path.endswith(".py"):
        pattern, with_help = PYTHON, False
    else:
        pattern, with_help = SHELL, False
    for match in pattern.finditer(source):
        found = match.groupdict()
        comment = found.pop("comment")
        found.pop("hashes", None)
        if comment is not None:
            if not (with_help and comment.startswith("///")):
                continue
            text = comment.lstrip("/ ")
        else:
            text = next((part for part in found.values() if part is not None), "")
        text = re.sub(r"\\\n\s*", "", text)
        yield source.count("\n", 0, match.start()) + 1, text


def phrases():
    """The list: a pattern and the better words, from lines of the form `pattern => better words`."""
    for line in PHRASES.read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, better = line.split(" => ")
            yield re.compile(rf"\b(?:{pattern})\b", re.I), better


def faults(text, listed):
    """What a text says that it should not, with what to write instead."""
    for pattern, better in listed:
        if match := pattern.search(text):
            yield match.group(0), better


def check_the_check(listed):
    """A check that finds nothing proves nothing: each kind of source has one fault to be found."""
    for path, source in [
        ("a.rs", 'fn a() { b("the device is none: \\\n     tpu") } // is none\n'),
        ("a.rs", "#[derive(clap::Args)]\nstruct A {\n    /// Whether it goes on\n    a: bool,\n}\n"),
        ("a.rs", 'const A: &str = r#"nobody "reads" it"#;\n'),
        ("a.py", 'raise ValueError(f"{a} is none")  # is none\n'),
        ("a.sh", "printf 'it is told\\n' # is told\n"),
    ]:
        found = [fault for _, text in texts(path, source) for fault in faults(text, listed)]
        assert len(found) == 1, (source, found)
    assert not list(faults("there is a folder named none", listed))


def main():
    listed = list(phrases())
    check_the_check(listed)
    names = ["*.rs", "*.py", "*.sh", "host/templates/*"]
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *names],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    count = bad = 0
    for path in files:
        if is_test(path) or not (ROOT / path).is_file():
            continue
        for line, text in texts(path, (ROOT / path).read_text()):
            count += 1
            if "--list" in sys.argv and " " in text.strip():
                print(f"{path}:{line}: {' '.join(text.split())}")
            for said, better in faults(text, listed):
                bad += 1
                print(
                    f"{path}:{line}: “{said}”: write {better}: {' '.join(text.split())[:90]}", file=sys.stderr
                )
    print(f"wording: {count} texts of {len(files)} files, {bad} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
