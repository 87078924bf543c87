"""Data files written by pyarrow, pandas, Python's json, gzip and zstd. The same documents must give the same
tokens in every format, codec and encoding.
Usage: data.py HOST FOLDER
"""

import gzip
import json
import math
import pathlib
import shutil
import subprocess
import sys

sys.path.pop(0)  # this folder's tensorboard.py would hide the package

import pandas
import pyarrow
import pyarrow.parquet

host, folder = sys.argv[1], pathlib.Path(sys.argv[2])
documents = [f'fn f_{n}() -> &\'static str {{\n    "é {n}"\n}}\n' * (n % 7 + 1) for n in range(500)]
whole = "".join(json.dumps({"content": text}) + "\n" for text in documents)


def tokens(path, *more):
    """Tokenizes data and returns the bytes of the token file."""
    out = folder / "out.tokens"
    words = ["data", "tokenize", "--data", path, "--output", out, *more]
    done = subprocess.run([str(word) for word in (host, *words)], capture_output=True, text=True)
    if done.returncode != 0 or "left out" in done.stderr:
        sys.exit(f"error: {path}: {done.stderr}")
    return out.read_bytes()


folder.mkdir(parents=True, exist_ok=True)
plain = folder / "a.jsonl"
plain.write_text(whole)
wanted = tokens(plain, "--vocab-size", 400)
shutil.copy(folder / "tokenizer.json", folder / "kept.json")


def check(path):
    if tokens(path, "--tokenizer", folder / "kept.json") != wanted:
        sys.exit(f"error: the tokens differ: {path}")
    path.unlink()


table = pyarrow.table({"id": list(range(500)), "content": documents})
count = 0
for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd"):
    for version in ("1.0", "2.0"):
        for dictionary in (True, False):
            path = folder / f"{codec}-{version}-{dictionary}.parquet"
            pyarrow.parquet.write_table(
                table,
                path,
                compression=codec,
                data_page_version=version,
                use_dictionary=dictionary,
                row_group_size=170,
                data_page_size=4096,
            )
            check(path)
            count += 1
for encoding in ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
    path = folder / f"{encoding}.parquet"
    pyarrow.parquet.write_table(
        table, path, use_dictionary=False, column_encoding={"content": encoding, "id": "PLAIN"}
    )
    check(path)
texts = table["content"]
for name, column in (
    ("large", texts.cast(pyarrow.large_string())),
    ("binary", texts.cast(pyarrow.binary())),
    ("view", texts.cast(pyarrow.string_view())),
    ("categories", texts.dictionary_encode()),
):
    path = folder / f"{name}.parquet"
    pyarrow.parquet.write_table(table.set_column(1, "content", column), path)
    check(path)
# Three shards without rows, in different formats, and one shard with all documents.
nulls = folder / "nulls"
nulls.mkdir(exist_ok=True)
pyarrow.parquet.write_table(table.slice(0, 0), nulls / "0.parquet", compression="brotli")
pandas.DataFrame({"content": []}).to_json(nulls / "1.jsonl", orient="records", lines=True)
with gzip.open(nulls / "2.jsonl.gz", "wb"):
    pass
(nulls / "3.jsonl").write_text(whole)
if tokens(nulls, "--tokenizer", folder / "kept.json") != wanted:
    sys.exit("error: the tokens differ with empty shards")

# Python's json writes NaN and Infinity, and programs on Windows write a byte order mark and CRLF.
rows = [
    {"score": number, "content": text, "inner": [math.inf, {"x": math.nan}]}
    for number, text in zip([math.nan, -math.inf, 1.5] * 200, documents)
]
lines = folder / "python.jsonl"
lines.write_text(
    "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8-sig", newline="\r\n"
)
check(lines)
frame = folder / "pandas.jsonl"
pandas.DataFrame(rows).to_json(frame, orient="records", lines=True, force_ascii=False)
check(frame)
zipped = folder / "members.jsonl.gz"
with open(zipped, "wb") as out:
    for at in range(0, len(whole), 5000):
        out.write(gzip.compress(whole[at : at + 5000].encode()))
    out.write(bytes(1024))
check(zipped)
if shutil.which("zstd"):
    long = folder / "long.jsonl.zst"
    subprocess.run(["zstd", "--quiet", "--force", "--ultra", "--long=31", plain, "-o", long], check=True)
    check(long)
print(f"data: {count} Parquet files and JSON lines of Python, pandas, gzip and zstd give the same tokens")
