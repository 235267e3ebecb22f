"""Ways to break a file: what is refused as a whole, and with which words; what loses some rows, and which."""
# ruff: noqa: E501, RUF001  # one way, one line; letters that look alike are one of the ways

from __future__ import annotations

import gzip
import io
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

CSV = "text,label\ngood,pos\nbad,neg\n"
JSONL = '{"text": "good", "label": "pos"}\n{"text": "bad", "label": "neg"}\n'


def damaged_parquet(keep: float, **options) -> bytes:
    written = io.BytesIO()
    pq.write_table(
        pa.table({"text": [f"text {n}" * 9 for n in range(1000)], "label": ["a"] * 1000}), written, **options
    )
    content = written.getvalue()
    return content[: int(len(content) * keep)]


def rotten_parquet() -> bytes:
    content = bytearray(damaged_parquet(1, compression="zstd", use_dictionary=False))
    content[200:1200] = b"\xff" * 1000
    return bytes(content)


def archive() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("rows.csv", CSV)
    return written.getvalue()


BIG = 20_000_000
REFUSED: dict[str, tuple[str, bytes | str, str]] = {
    "csv, other column": ("csv", "txt,label\na,pos\n", "task.text_column = 'text': rows.csv has no such column, but 'txt', 'label'; did you mean 'txt'?"),
    "csv, column in other case": ("csv", "Text,label\na,pos\n", "did you mean 'Text'?"),
    "csv, unlike column": ("csv", "x,label\na,pos\n", "has no such column, but 'x', 'label'; name one of them"),
    "csv, column with white space": ("csv", " text ,label\na,pos\n", "did you mean ' text '?"),
    "csv, column in look-alike letters": ("csv", "tеxt,label\na,pos\n", "did you mean 'tеxt'?"),
    "csv, semicolons": ("csv", "id;text;label\n1;a;pos\n", "collect.source.separator = ',': the header line 'id;text;label' has none; set it to ';'"),
    "csv, tabs": ("csv", "text\tlabel\na\tpos\n", "has none; set it to '\\t'"),
    "csv, pipes": ("csv", "text|label\na|pos\n", "has none; set it to '|'"),
    "csv, repeated column": ("csv", "text,label,text\na,pos,b\n", "rows.csv has 2 columns of this name; rename all but one"),
    "csv, comment before the header": ("csv", "# exported by x\ntext,label\na,pos\n", "has no such column, but '# exported by x'"),
    "csv, no header": ("csv", "good film,pos\nbad film,neg\n", "has no such column, but 'good film', 'pos'"),
    "csv, header with broken quotes": ("csv", '"text,label\ngood,pos\n', "has no header line"),
    "csv, blank lines only": ("csv", "\n\n\n", "has no header line; write the names of the columns in the first line"),
    "csv, white space only": ("csv", "  \n\t\n ", "has no such column, but '  '"),
    "csv, UTF-16": ("csv", CSV.encode("utf-16"), "is UTF-16 text, not csv; save it as UTF-8: iconv -f UTF-16 -t UTF-8 rows.csv"),
    "csv, UTF-16 big-endian": ("csv", b"\xfe\xff" + CSV.encode("utf-16-be"), "is UTF-16 text, not csv"),
    "csv, UTF-16 without mark": ("csv", CSV.encode("utf-16-le"), "is binary or UTF-16, not UTF-8 text"),
    "csv, UTF-32": ("csv", CSV.encode("utf-32"), "is UTF-32 text, not csv; save it as UTF-8: iconv -f UTF-32"),
    "csv, binary": ("csv", bytes(range(256)) * 8, "is binary or UTF-16"),
    "csv, empty": ("csv", b"", "is empty; name a file with rows"),
    "csv, truncated gzip": ("csv", gzip.compress(CSV.encode() * 99)[:-20], "cannot be read to its end: Compressed file ended"),
    "csv, gzip of rot": ("csv", b"\x1f\x8b" + bytes(range(99)), "cannot be read to its end"),
    "csv, gzipped workbook": ("csv", gzip.compress(archive()), "is a ZIP archive or an Excel workbook, not csv"),
    "csv, zstd": ("csv", b"\x28\xb5\x2f\xfd\x04\x00", "is zstd-compressed, not csv; decompress it first: unzstd rows.csv"),
    "csv, zip": ("csv", archive(), "is a ZIP archive or an Excel workbook, not csv; unpack it, or save the sheet as CSV"),
    "csv, old workbook": ("csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest", "is an old Excel workbook, not csv; save the sheet"),
    "csv, is Parquet": ("csv", damaged_parquet(1), "is Parquet, not csv; set collect.source.kind to parquet"),
    "csv, PDF": ("csv", b"%PDF-1.7\n", "is a PDF document, not csv"),
    "csv, web page": ("csv", b"<!DOCTYPE html><html>", "is a web page, not csv; download the file itself"),
    "csv, Git LFS pointer": ("csv", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file"),
    "csv, is JSON lines": ("csv", JSONL, "has no such column, but '{\"text\": \"good\"'"),
    "jsonl, array": ("jsonl", '[{"text": "a", "label": "x"}]', "is a JSON array, not one object per line; write each row on its own line: jq -c '.[]' rows.jsonl"),
    "jsonl, printed array": ("jsonl", '[\n  {"text": "a",\n  "label": "x"}\n]\n', "is a JSON array"),
    "jsonl, gigantic array": ("jsonl", '["' + "x" * BIG + '"]', "is a JSON array"),
    "jsonl, other column": ("jsonl", '{"txt": "a", "label": "x"}\n', "rows.jsonl has no such column, but 'txt', 'label'; did you mean 'txt'?"),
    "parquet, is CSV": ("parquet", CSV, "is not Parquet; set collect.source.kind to csv or jsonl"),
    "parquet, nothing but magic": ("parquet", b"PAR1 but then nothing of it", "cannot be read as Parquet"),
    "parquet, truncated": ("parquet", damaged_parquet(0.7), "cannot be read as Parquet"),
    "parquet, rotten page": ("parquet", rotten_parquet(), "cannot be read as Parquet"),
    "parquet, empty": ("parquet", b"", "is empty"),
}  # fmt: skip
"""Way to break a file → kind it is read as, content, and what the mistake says."""

SET_ASIDE: dict[str, tuple[str, bytes | str, list[tuple], list[tuple[int, str]]]] = {
    "csv, Latin-1": ("csv", "text,label\ncafé,pos\n".encode("latin-1"), [(1, "caf\ufffd", "pos")], []),
    "csv, byte order mark": ("csv", b"\xef\xbb\xbf" + CSV.encode(), [(1, "good", "pos"), (2, "bad", "neg")], []),
    "csv, CR LF": ("csv", CSV.replace("\n", "\r\n"), [(1, "good", "pos"), (2, "bad", "neg")], []),
    "csv, CR alone": ("csv", CSV.replace("\n", "\r"), [(1, "good", "pos"), (2, "bad", "neg")], []),
    "csv, no end of the last line": ("csv", CSV.rstrip(), [(1, "good", "pos"), (2, "bad", "neg")], []),
    "csv, header only": ("csv", "text,label\n", [], []),
    "csv, blank lines": ("csv", "\n\ntext,label\n\na,b\n\n\nc,d\n", [(2, "a", "b"), (5, "c", "d")], []),
    "csv, quote never closed": ("csv", 'text,label\n"a,b\nc,d\n', [(2, "c", "d")], [(1, "broken_quotes")]),
    "csv, stray quote after a field": ("csv", 'text,label\n"a"b,c\nd,e\n', [(2, "d", "e")], [(1, "broken_quotes")]),
    "csv, quote within a field": ("csv", 'text,label\na "b" c,d\n', [(1, 'a "b" c', "d")], []),
    "csv, quotes escaped by a backslash": ("csv", 'text,label\n"a \\"b\\" c",d\ne,f\n', [(2, "e", "f")], [(1, "broken_quotes")]),
    "csv, ragged": ("csv", "text,label\na\nb,c,d\ne,f\n", [(3, "e", "f")], [(1, "ragged_row"), (2, "ragged_row")]),
    "csv, separator at the end of each row": ("csv", "text,label\na,b,\n", [], [(1, "ragged_row")]),
    "csv, separator at the end of each line": ("csv", "text,label,\na,b,\n", [(1, "a", "b")], []),
    "csv, comment between rows": ("csv", "text,label\n# half-time\na,b\n", [(2, "a", "b")], [(1, "ragged_row")]),
    "csv, NUL bytes": ("csv", b"text,label\n" + b"long enough text " * 30 + b"\0,b\n", [(1, "long enough text " * 30 + "\0", "b")], []),
    "csv, gigantic field": ("csv", "text,label\n" + "x" * BIG + ",a\nb,c\n", [(2, "b", "c")], [(1, "line_too_long")]),
    "csv, gigantic field in quotes": ("csv", 'text,label\n"' + "x" * BIG + '",a\nb,c\n', [(2, "b", "c")], [(1, "line_too_long")]),
    "csv, field longer than Python's limit": ("csv", f"text,label\n{'x' * 200_000},a\n", [(1, "x" * 200_000, "a")], []),
    "csv, empty cells": ("csv", "text,label\n,\n", [(1, "", "")], []),
    "csv, numbers, booleans and dates": ("csv", "text,label\n1,01\ntrue,2026-01-02\n", [(1, "1", "01"), (2, "true", "2026-01-02")], []),
    "csv, very many columns": ("csv", ",".join(["text", "label", *(f"c{n}" for n in range(5000))]) + "\n" + ",".join(["a"] * 5002) + "\n", [(1, "a", "a")], []),
    "csv, formula": ("csv", "text,label\n=1+1,a\n", [(1, "=1+1", "a")], []),
    "jsonl, is CSV": ("jsonl", CSV, [], [(1, "not_json"), (2, "not_json"), (3, "not_json")]),
    "jsonl, truncated": ("jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "la', [(1, "a", "x")], [(2, "not_json")]),
    "jsonl, printed object": ("jsonl", '{\n"text": "a"\n}\n', [], [(1, "not_json"), (2, "not_json"), (3, "not_json")]),
    "jsonl, mixed values": ("jsonl", '{"text": 1, "label": null}\n{"text": 1.5, "label": false}\n', [(1, "1", None), (2, "1.5", "false")], []),
    "jsonl, not objects": ("jsonl", '{"text": "a", "label": "x"}\n[1]\n"b"\n7\n', [(1, "a", "x")], [(2, "not_an_object"), (3, "not_an_object"), (4, "not_an_object")]),
    "jsonl, nested": ("jsonl", '{"text": ["a", {"b": 1}], "label": "x"}\n', [(1, '["a", {"b": 1}]', "x")], []),
    "jsonl, nested too deeply": ("jsonl", '{"text": "a", "label": "x"}\n' + "[" * 100_000 + "\n", [(1, "a", "x")], [(2, "not_json")]),
    "jsonl, half a surrogate pair": ("jsonl", '{"text": "\\ud83d hi \\ud83d\\ude00", "label": "x"}\n', [(1, "\ufffd hi 😀", "x")], []),
    "jsonl, repeated key": ("jsonl", '{"text": "a", "text": "b", "label": "x"}\n', [(1, "b", "x")], []),
    "jsonl, key missing here and there": ("jsonl", '{"text": "a"}\n{"label": "x"}\n', [(1, "a", None), (2, None, "x")], []),
    "jsonl, byte order mark and CR LF": ("jsonl", b'\xef\xbb\xbf{"text": "a", "label": "x"}\r\n\r\n', [(1, "a", "x")], []),
    "jsonl, gigantic value": ("jsonl", '{"text": "' + "x" * BIG + '"}\n{"text": "a", "label": "x"}\n', [(2, "a", "x")], [(1, "line_too_long")]),
    "jsonl, infinite number": ("jsonl", '{"text": 1e999, "label": "x"}\n', [(1, "Infinity", "x")], []),
    "jsonl, unicode line separator": ("jsonl", '{"text": "a\u2028b", "label": "x"}\n', [(1, "a\u2028b", "x")], []),
}  # fmt: skip
"""Way to break a file → kind, content, rows that are read, and number and reason of what is set aside."""
